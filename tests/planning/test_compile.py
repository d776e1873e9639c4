"""The compiler: partition, freeze sets, modes, rates and steps, as properties and by example."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import isclose
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning.toys import INFO, phase, recipe, toy_table

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.facts import DatasetInfo
from tlrecipe.planning.plan import Plan

NAMES = [param.name for param in toy_table()]
PATTERNS = [
    "stem",
    "bn",
    "blocks",
    "blocks.0",
    "blocks.*.bn",
    "blocks.[0-1].conv",
    "@norm",
    "@bias",
    "@head",
    "@backbone",
    "@stage:1",
    "@stage:0..2",
    "**",
    "*.weight",
    "**.bias",
    "blocks.{0,1}.bn.weight",
]


def compiled(**changes: Any) -> Plan:
    return compile_recipe(recipe(**changes), toy_table(), INFO)


def codes(**changes: Any) -> list[str]:
    with pytest.raises(TlrecipeError) as caught:
        compiled(**changes)
    return [d.code for d in caught.value.diagnostics]


patterns = st.lists(st.sampled_from(PATTERNS), max_size=4)
groups = st.lists(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3), max_size=4)


@given(groups=groups, freeze=patterns, thaw=patterns, layer_decay=st.sampled_from([1.0, 0.5]))
def test_any_accepted_recipe_partitions_the_parameters_exactly(
    groups: list[list[str]], freeze: list[str], thaw: list[str], layer_decay: float
) -> None:
    tables = [{"name": f"g{index}", "match": match} for index, match in enumerate(groups)]
    try:
        plan = compiled(group=tables, phase=[phase(freeze=freeze, thaw=thaw, layer_decay=layer_decay)])
    except TlrecipeError:
        return
    assert sorted(name for names in plan.group_params.values() for name in names) == sorted(NAMES)
    (only,) = plan.phases
    assert only.trainable | only.frozen == set(NAMES)
    assert not only.trainable & only.frozen
    in_optimizer = [name for group in only.groups for name in group.params]
    assert len(in_optimizer) == len(set(in_optimizer))
    assert set(in_optimizer) == only.trainable
    for group in only.groups:
        assert set(group.params) <= set(plan.group_params[group.name])


def test_first_match_wins() -> None:
    plan = compiled(group=[{"name": "norms", "match": ["@norm"]}, {"name": "rest", "match": ["**"]}])
    assert "blocks.0.bn.weight" in plan.group_params["norms"]
    assert "blocks.0.bn.weight" not in plan.group_params["rest"]
    assert [m.taken for m in plan.phases[0].matches if m.pattern == "**"] == [len(NAMES) - 6]


def test_thaw_beats_freeze_whatever_the_order() -> None:
    plan = compiled(phase=[phase(freeze=["**"], thaw=["blocks.1", "@head"])])
    assert plan.phases[0].trainable == {n for n in NAMES if n.startswith(("blocks.1", "head"))}


def test_modules_train_only_where_something_below_them_trains() -> None:
    modes = compiled(phase=[phase(freeze=["stem", "bn", "blocks.0"])]).phases[0].train_modules
    assert {"", "blocks", "blocks.1", "blocks.1.bn", "blocks.1.drop", "head"} <= modes
    assert not modes & {"stem", "bn", "blocks.0", "blocks.0.bn", "blocks.0.drop"}


@pytest.mark.parametrize(
    ("norm", "training", "moving"),
    [
        ("follow", {"blocks.1.bn"}, {"blocks.1.bn.running_mean", "blocks.1.bn.running_var"}),
        ("frozen", set(), set()),
        ("train", {"bn", "blocks.0.bn", "blocks.1.bn"}, None),
    ],
)
def test_norm_policies(norm: str, training: set[str], moving: set[str] | None) -> None:
    only = compiled(phase=[phase(freeze=["stem", "bn", "blocks.0"], norm=norm)]).phases[0]
    norms = {"bn", "blocks.0.bn", "blocks.1.bn"}
    assert only.train_modules & norms == training
    every = {f"{n}.{b}" for n in norms for b in ("running_mean", "running_var")}
    assert only.moving_buffers == (every if moving is None else moving)


def test_a_norm_layer_whose_own_parameters_are_frozen_stands_still_in_a_training_block() -> None:
    only = compiled(phase=[phase(freeze=["@norm"])]).phases[0]
    assert "blocks.0.bn" not in only.train_modules
    assert "blocks.0.drop" in only.train_modules


def test_one_rate_is_scaled_by_group_and_a_table_is_taken_as_written() -> None:
    tables = [{"name": "head", "match": ["@head"]}, {"name": "rest", "match": ["**"], "lr_scale": 0.1}]
    scaled = compiled(group=tables, phase=[phase(freeze=[], lr=0.5)]).phases[0]
    assert {g.name: g.lr for g in scaled.groups} == pytest.approx({"head": 0.5, "rest": 0.05})
    written = compiled(group=tables, phase=[phase(freeze=[], lr={"head": 0.3, "rest": 0.2})]).phases[0]
    assert {g.name: g.lr for g in written.groups} == {"head": 0.3, "rest": 0.2}


def test_decay_is_an_axis_of_its_own() -> None:
    optimizer = {"name": "sgd", "weight_decay": 0.1, "no_decay": ["@norm", "head.bias"]}
    only = compiled(optimizer=optimizer, phase=[phase(freeze=[], layer_decay=0.5)]).phases[0]
    for group in only.groups:
        for name in group.params:
            assert group.weight_decay == (
                0.0 if ".bn." in name or name in {"head.bias", "bn.weight", "bn.bias"} else 0.1
            )


def test_layer_decay_counts_from_the_head() -> None:
    only = compiled(phase=[phase(freeze=[], layer_decay=0.5)]).phases[0]
    rate = {name: group.lr for group in only.groups for name in group.params}
    assert isclose(rate["head.weight"], 0.1)
    assert isclose(rate["blocks.1.conv.weight"], 0.1 * 0.5)
    assert isclose(rate["stem.weight"], 0.1 * 0.5**3)


def test_steps_count_the_odd_last_batch_and_accumulation() -> None:
    assert compiled(phase=[phase(batch_size=30)]).phases[0].steps == 2 * 4
    assert compiled(phase=[phase(batch_size=30, accumulate=3)]).phases[0].steps == 2 * 2
    assert compiled(phase=[phase(epochs=None, steps=7)]).phases[0].steps == 7


@pytest.mark.case("D15", "R09")
def test_a_larger_batch_than_data_is_a_warning_with_the_real_steps() -> None:
    plan = compiled(data={"source": "sample", "batch_size": 1000})
    assert [w.code for w in plan.warnings] == ["TLR128"]
    assert "2 steps of 100 images" in plan.warnings[0].message


def test_the_plan_is_a_pure_function() -> None:
    assert compiled(group=[{"name": "a", "match": ["**"]}]) == compiled(
        group=[{"name": "a", "match": ["**"]}]
    )


def test_without_data_everything_else_is_checked() -> None:
    assert compile_recipe(recipe(), toy_table(), None).counts == {}
    with pytest.raises(TlrecipeError, match="matches no parameter"):
        compile_recipe(recipe(phase=[phase(freeze=["nope"])]), toy_table(), None)


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        pytest.param(["TLR104"], {"phase": [phase(freeze=["layerr"])]}, id="R12-freeze-matches-nothing"),
        pytest.param(["TLR104"], {"phase": [phase(freeze=["@backbone"], thaw=["nope"])]}, id="thaw-nothing"),
        pytest.param(
            ["TLR129"], {"phase": [phase(freeze=["stem"], thaw=["head"])]}, id="thaw-exempts-nothing"
        ),
        pytest.param(["TLR104"], {"group": [{"name": "a", "match": ["nope"]}]}, id="group-nothing-held-back"),
        pytest.param(["TLR104"], {"phase": [phase(freeze=["@stage:9"])]}, id="no-such-stage"),
        pytest.param(["TLR104"], {"optimizer": {"name": "sgd", "no_decay": ["nope"]}}, id="no-decay-nothing"),
        pytest.param(
            ["TLR105"],
            {"group": [{"name": "a", "match": ["**"]}, {"name": "b", "match": ["stem"]}]},
            id="R14-taken-whole",
        ),
        pytest.param(["TLR107"], {"group": [{"name": "a", "match": ["@head"]}]}, id="R15-in-no-group"),
        pytest.param(["TLR120"], {"phase": [phase(freeze=["**"])]}, id="R13-trains-nothing"),
        pytest.param(["TLR121"], {"phase": [phase(freeze=["@head"])]}, id="R19-frozen-head"),
        pytest.param(["TLR123"], {"phase": [phase(steps=3)]}, id="epochs-and-steps"),
        pytest.param(["TLR123"], {"phase": [phase(epochs=None)]}, id="neither"),
        pytest.param(
            ["TLR124"], {"phase": [phase(schedule={"name": "linear", "warmup": 1000})]}, id="R18-warmup"
        ),
        pytest.param(["TLR125"], {"phase": [phase(freeze=[], batch_size=33)]}, id="D14-last-batch-of-one"),
        pytest.param(["TLR126"], {"phase": [phase(start_from="best")]}, id="best-of-nothing"),
        pytest.param(["TLR110"], {"phase": [phase(lr={"al": 0.1})]}, id="unknown-group"),
        pytest.param(
            ["TLR111"],
            {
                "group": [{"name": "head", "match": ["@head"]}, {"name": "rest", "match": ["**"]}],
                "phase": [phase(freeze=[], lr={"head": 0.1})],
            },
            id="group-without-rate",
        ),
        pytest.param(
            ["TLR104", "TLR124"],
            {"phase": [phase(freeze=["x"]), phase(name="two", schedule={"name": "cosine", "warmup": 99})]},
            id="R22-two-mistakes",
        ),
    ],
)
def test_mistakes(expected: list[str], changes: dict[str, Any]) -> None:
    assert codes(**changes) == expected


def test_frozen_random_weights() -> None:
    with pytest.raises(TlrecipeError) as caught:
        compile_recipe(recipe(), toy_table(pretrained=False), INFO)
    assert [d.code for d in caught.value.diagnostics] == ["TLR122"]
    later = [phase(freeze=[]), phase(name="two", freeze=["stem"])]
    assert compile_recipe(recipe(phase=later), toy_table(pretrained=False), INFO)


def test_stopping_and_best_need_validation() -> None:
    info = DatasetInfo(INFO.classes, {"train": 100, "test": 50})
    changes = {"final_weights": "best", "phase": [phase(stop={"patience": 2})]}
    with pytest.raises(TlrecipeError) as caught:
        compile_recipe(recipe(**changes), toy_table(), info)
    assert sorted(d.path[0] for d in caught.value.diagnostics) == ["final_weights", "phase"]


@pytest.mark.case("R16")
def test_tied_parameters_are_one_and_may_not_be_claimed_twice() -> None:
    whole = compile_recipe(recipe(), toy_table(tied=True), INFO)
    assert whole.group_params["all"].count("head.weight") == 1
    split = [
        {"name": "a", "match": ["stem"]},
        {"name": "b", "match": ["head"]},
        {"name": "c", "match": ["**"]},
    ]
    with pytest.raises(TlrecipeError) as caught:
        compile_recipe(recipe(group=split), toy_table(tied=True), INFO)
    assert "TLR108" in [d.code for d in caught.value.diagnostics]


def test_a_fixed_image_size_is_held() -> None:
    with pytest.raises(TlrecipeError) as caught:
        compile_recipe(recipe(phase=[phase(size=64)]), toy_table(fixed_size=True), INFO)
    assert [(d.code, d.path) for d in caught.value.diagnostics] == [("TLR131", ("phase", 0, "size"))]


def test_the_compiler_needs_no_torch() -> None:
    import subprocess

    code = "import sys, tlrecipe.planning.compile, tlrecipe.planning.explain; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_network_that_is_built_for_one_size_refuses_a_phase_of_another() -> None:
    table = replace(toy_table(), built_size=32)
    assert compile_recipe(recipe(phase=[phase(size=32)]), table, INFO)
    with pytest.raises(TlrecipeError) as caught:
        compile_recipe(recipe(phase=[phase(size=64)]), table, INFO)
    assert [(d.code, d.path) for d in caught.value.diagnostics] == [("TLR131", ("phase", 0, "size"))]


def test_a_metric_that_these_classes_do_not_have_is_refused_where_the_classes_are_known() -> None:
    one = phase(stop={"metric": "top5_accuracy"}, best_metric="top5_accuracy")
    with pytest.raises(TlrecipeError) as caught:
        compiled(phase=[one])
    assert [(d.code, d.path[2:]) for d in caught.value.diagnostics] == [
        ("TLR132", ("best_metric",)),
        ("TLR132", ("stop", "metric")),
    ]
    compile_recipe(recipe(phase=[one]), toy_table(), None)


def test_the_best_is_by_what_the_phase_says_else_by_what_stops_it() -> None:
    stop = {"metric": "macro_f1"}
    for changes, metric in (
        ({}, "accuracy"),
        ({"stop": stop}, "macro_f1"),
        ({"stop": stop, "best_metric": "auroc"}, "auroc"),
    ):
        assert compiled(phase=[phase(**changes)]).phases[0].best_metric == metric


UNEQUAL = DatasetInfo(("cat", "dog"), {"train": 100, "val": 20, "test": 50}, class_counts=(80, 20))


def plan_of(info: DatasetInfo, **changes: Any) -> Plan:
    return compile_recipe(recipe(**changes), toy_table(), info)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_class_weights_have_a_mean_of_one_over_the_training_images(name: str) -> None:
    balanced = {"name": name, "class_weights": "balanced"}
    assert plan_of(UNEQUAL, loss=balanced).phases[0].class_weights == pytest.approx((0.625, 2.5))
    given = {"name": name, "class_weights": {"dog": 4.0}}
    assert plan_of(UNEQUAL, loss=given).phases[0].class_weights == pytest.approx((0.625, 2.5))
    own = phase(loss={"name": "cross_entropy"})
    assert plan_of(UNEQUAL, loss=balanced, phase=[own]).phases[0].class_weights is None
    assert compile_recipe(recipe(loss=balanced), toy_table(), None).phases[0].class_weights is None


def test_a_weight_for_an_unknown_class_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(TlrecipeError) as caught:
        plan_of(UNEQUAL, loss={"name": "cross_entropy", "class_weights": {"dgo": 4.0}})
    (found,) = caught.value.diagnostics
    assert (found.code, found.path, found.help) == (
        "TLR134",
        ("loss", "class_weights", "dgo"),
        "did you mean `dog`?",
    )


@pytest.mark.parametrize(
    ("counts", "changes", "warned"),
    [
        ((84, 16), {}, True),
        ((80, 20), {}, False),
        ((84, 16), {"loss": {"name": "focal", "class_weights": "balanced"}}, False),
        ((84, 16), {"phase": [phase(sampling="balanced")]}, False),
        ((), {}, False),
    ],
)
def test_unbalanced_classes_are_warned_about_unless_the_recipe_allows_for_them(
    counts: tuple[int, ...], changes: dict[str, Any], warned: bool
) -> None:
    plan = plan_of(replace(UNEQUAL, class_counts=counts), **changes)
    assert [d.code for d in plan.warnings] == ["TLR135"] * warned


def test_augmentation_that_contradicts_itself_is_refused() -> None:
    for name in ("mixup", "cutmix"):
        assert codes(phase=[phase(augment={name: 1.0, "views": 2})]) == ["TLR133"]
    for table in ({"resized_crop": {"scale": [1.0, 0.5]}}, {"erasing": {"ratio": [3.0, 0.3]}}):
        assert codes(phase=[phase(augment=table)]) == ["TLR133"]


def test_methods_that_hold_on_to_weights_need_some() -> None:
    full = phase(freeze=[], wise_ft=0.5)
    assert codes(phase=[full]) == ["TLR136"]
    compiled(phase=[phase(name="head"), full])
    table = toy_table(pretrained=False)
    with pytest.raises(TlrecipeError) as caught:
        compile_recipe(recipe(phase=[phase(freeze=[], l2_sp=0.1)]), table, INFO)
    assert [d.code for d in caught.value.diagnostics] == ["TLR136"]


def test_l2_sp_takes_the_place_of_decay_in_the_backbone() -> None:
    optimizer = {"name": "adamw", "weight_decay": 0.1, "no_decay": ["@bias"]}
    (one,) = compiled(optimizer=optimizer, phase=[phase(freeze=[], l2_sp=0.1)]).phases
    decays = {name: group.weight_decay for group in one.groups for name in group.params}
    assert decays["head.weight"] == 0.1
    assert {decays[name] for name in decays if not name.startswith("head")} == {0.0}


# --------------------------------------------------------------------------- adapters


def with_adapters(*phases: dict[str, Any], rank: int = 1, **changes: Any) -> Plan:
    return compile_recipe(recipe(phase=list(phases), **changes), toy_table(rank=rank), INFO)


def test_the_frozen_backbone_leaves_its_adapters_to_train() -> None:
    (one, two) = with_adapters(
        phase(freeze=["@backbone", "@adapter"]), phase(name="two", layer_decay=0.5, optimizer=DECAYING)
    ).phases
    head = {"head.weight", "head.bias"}
    adapters = {f"blocks.{i}.conv.lora_{part}" for i in (0, 1) for part in ("down", "up")}
    assert one.trainable == head
    assert two.trainable == head | adapters
    # A layer and the block around it train with its adapter; the norm beside it stands still.
    assert "blocks.0.drop" in two.train_modules - one.train_modules
    assert "blocks.0.bn" not in two.train_modules
    rates = {name: (group.lr, group.weight_decay) for group in two.groups for name in group.params}
    assert rates["blocks.0.conv.lora_up"] == (pytest.approx(0.1 * 0.25), 0.3)
    assert rates["blocks.1.conv.lora_down"] == (pytest.approx(0.1 * 0.5), 0.3)


DECAYING = {"name": "adamw", "weight_decay": 0.3}


def test_adapters_are_a_group_of_their_own_or_of_their_place() -> None:
    groups = [{"name": "late", "match": ["blocks.1"]}, {"name": "small", "match": ["@adapter"]}]
    plan = with_adapters(phase(), group=[*groups, {"name": "rest", "match": ["**"]}])
    assert "blocks.1.conv.lora_up" in plan.group_params["late"]
    assert plan.group_params["small"] == ("blocks.0.conv.lora_down", "blocks.0.conv.lora_up")


@pytest.mark.parametrize("key", ["l2_sp", "wise_ft"])
def test_methods_that_hold_on_to_weights_do_not_go_with_adapters_that_train(key: str) -> None:
    holding = {"freeze": ["stem"], key: 0.5, "name": "two"}
    with pytest.raises(TlrecipeError) as caught:
        with_adapters(phase(), phase(**holding))
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("TLR137", ("phase", 1, key))
    with_adapters(phase(), phase(**holding | {"freeze": ["stem", "@adapter"]}))


def test_adapters_need_pretrained_weights() -> None:
    table = toy_table(pretrained=False, rank=1)
    with pytest.raises(TlrecipeError) as caught:
        compile_recipe(recipe(phase=[phase(freeze=[])]), table, INFO)
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("TLR115", ("backbone", "adapter"))
    assert found.labels[0].path == ("backbone", "weights")


@pytest.mark.parametrize(
    ("phases", "rank", "said"),
    [
        ([phase()], 1, None),
        ([phase(freeze=["@backbone", "blocks"])], 1, "no phase trains the adapter"),
        ([phase(freeze=["stem"])], 1, "trains the weight of `blocks.0.conv` (and 1 more) and its adapter"),
        (
            [phase(freeze=["@backbone"], thaw=["blocks.1.conv.weight"])],
            1,
            "weight of `blocks.1.conv` and its",
        ),
        ([phase(freeze=["stem", "@adapter"]), phase(name="two")], 1, None),
        # A convolution of 4 x 3 x 3 x 3 has 108 weights, an adapter of rank 4 on it 124.
        ([phase()], 4, "`blocks.0.conv` (and 1 more) has as many parameters as the layer itself"),
    ],
)
def test_an_adapter_that_is_of_no_use_is_warned_about(
    phases: list[dict[str, Any]], rank: int, said: str | None
) -> None:
    plan = with_adapters(*phases, rank=rank)
    assert [d.code for d in plan.warnings] == ["TLR138"] * (said is not None)
    assert said is None or said in plan.warnings[0].message


def test_a_selector_without_adapters_says_how_to_get_some() -> None:
    with pytest.raises(TlrecipeError) as caught:
        compiled(phase=[phase(thaw=["@adapter"])])
    (found,) = caught.value.diagnostics
    assert (found.code, found.path) == ("TLR104", ("phase", 0, "thaw", 0))
    assert found.help is not None and "[backbone]" in found.help
