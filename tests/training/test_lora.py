"""Training adapters: what stands still, is computed once, is measured, and goes on after a stop."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from training.nets import Net, backbone, net, phase, plan_for, recipe, source, state

from tlrecipe.data.preprocess import normalise
from tlrecipe.language.spec import LoraAdapter
from tlrecipe.models.adapters import attach, merged_state
from tlrecipe.planning.compile import compile_recipe
from tlrecipe.planning.explain import explain, explain_text
from tlrecipe.planning.facts import AdapterMatch, DatasetInfo
from tlrecipe.training.engine import Stopped
from tlrecipe.training.interpreter import Checkpoint, train
from tlrecipe.training.survey import prefix_digest, split_phase

LAYERS = ("blocks.1.conv", "blocks.2.conv")
HEAD_FIRST = phase(epochs=1, freeze=["@backbone", "@adapter"])
ADAPT = phase(name="two", epochs=2, lr=0.1)


def adapted(alpha: float = 4.0, dropout: float = 0.0) -> Net:
    model = net()
    adapter = LoraAdapter(name="lora", match=LAYERS, rank=2, alpha=alpha, dropout=dropout)
    attach(model, LAYERS, adapter, seed=0)
    return model


@pytest.mark.parametrize("features", ["off", "store", "recompute"])
def test_the_layers_stand_still_and_their_adapters_train(features: str) -> None:
    model = adapted()
    before = state(model)
    plan = plan_for(model, phase=[HEAD_FIRST, ADAPT], compute={"features": features})
    result = train(plan, backbone(model), source)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"{layer}.lora_{part}" for layer in LAYERS for part in ("down", "up")} | {
        "head.weight",
        "head.bias",
    }
    for done in result.phases:
        assert done.frozen_sha256["before"] == done.frozen_sha256["after"]


def test_features_end_before_the_first_adapter_and_train_what_the_plain_loop_does() -> None:
    """The third phase stores what is behind adapters that the second has trained."""
    phases = [HEAD_FIRST, ADAPT, phase(name="three", epochs=2, freeze=["@backbone", "blocks.1"], lr=0.02)]
    ends = {}
    for features in ("off", "store"):
        model = adapted()
        compute = {"features": features, "precision": "fp32"}
        result = train(plan_for(model, phase=phases, compute=compute), backbone(model), source)
        ends[features] = state(model)
    assert [done.prefix["cut"] for done in result.phases] == [["drop"], ["blocks.0"], ["add"]]
    for name, value in ends["off"].items():
        torch.testing.assert_close(ends["store"][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_stored_is_found_again_whatever_the_adapters_behind_it() -> None:
    def digest(model: nn.Module, *, trained: bool = False) -> str:
        plan = plan_for(model, phase=[phase(freeze=["@stage:0..3"])])
        if trained:
            nn.init.ones_(model.get_parameter("blocks.2.conv.lora_up"))
        return prefix_digest(split_phase(plan, plan.phases[0], model.eval()))

    untouched = digest(net())
    assert digest(adapted()) == untouched
    assert digest(adapted(alpha=8.0)) == untouched
    assert len({untouched, digest(adapted(), trained=True), digest(adapted(alpha=8.0), trained=True)}) == 3


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_run_measures_the_network_that_its_model_will_be(ema: float | None) -> None:
    model = adapted(dropout=0.2)
    plan = plan_for(model, phase=[HEAD_FIRST, ADAPT | {"ema": ema}], compute={"precision": "fp32"})
    result = train(plan, backbone(model), source)
    plain = net()
    plain.load_state_dict(merged_state(model), strict=True)
    test = source("test", plan.preprocessing)
    assert test is not None
    images = normalise(test.batch(torch.arange(12), plan.preprocessing), plan.preprocessing)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(plain(images), test.labels)
    assert result.metrics["test"]["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_run_with_adapters_resumes_to_the_same_bytes() -> None:
    phases = [HEAD_FIRST, ADAPT | {"epochs": 3, "ema": 0.5}]

    def run(resume: Checkpoint | None = None, after: int = 10**6) -> tuple[Net, list[Checkpoint]]:
        model, saved, asked = adapted(dropout=0.2), list[Checkpoint](), [0]

        def stop() -> bool:
            asked[0] += 1
            return asked[0] > after

        def save(point: Checkpoint) -> None:
            saved.append(
                replace(point, tensors={name: value.clone() for name, value in point.tensors.items()})
            )

        # What would be chosen by timing is fixed. Layers that train are folded with their adapters.
        compute = {"features": "store", "precision": "bf16"}
        optimizer = {"name": "adamw", "weight_decay": 0.1}
        plan = plan_for(model, phase=phases, optimizer=optimizer, compute=compute)
        if resume is not None:
            for name, parameter in model.named_parameters():
                if "lora" in name:
                    nn.init.zeros_(parameter)
        with suppress(Stopped):
            train(plan, backbone(model), source, save=save, stop=stop, resume=resume)
        return model, saved

    whole, _ = run()
    for after in (20, 27):
        _, saved = run(after=after)
        stopped = saved[-1].values["state"]
        assert stopped["phase"] == 1 and stopped["step"] % 5
        resumed, _ = run(resume=saved[-1])
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in state(resumed).items())


EXPLAINED = """\
adapter: 320 parameters on 2 layers
  backbone.adapter.match `blocks.[1-2]`: 2, blocks.1.conv … blocks.2.conv; left
      out: 1 × grouped Conv2d
"""


def test_explain_says_what_became_of_the_patterns() -> None:
    model = adapted()
    match = AdapterMatch("blocks.[1-2]", LAYERS, ("grouped Conv2d",))
    table = replace(backbone(model).table, adapters=(match,))
    plan = compile_recipe(recipe(phase=[ADAPT]), table, DatasetInfo(("cat", "dog", "owl"), {"train": 50}))
    facts: dict[str, Any] = explain(plan, table)
    assert facts["adapter"]["patterns"][0]["left_out"] == {"grouped Conv2d": 1}
    assert EXPLAINED in explain_text(facts)
    assert explain(plan_for(net()), backbone(net()).table)["adapter"] is None
