"""Whatever is fast is compared with the plain loop, written out here by hand: it defines the meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training.nets import Recorder, backbone, net, phase, plan_for, source, state
from training.nets import images as pixels_of

from tlrecipe.data.augment import flip_mask
from tlrecipe.models.fast import fast_copy
from tlrecipe.planning.randomness import key, permutation
from tlrecipe.training import survey
from tlrecipe.training.features import FeatureStore
from tlrecipe.training.interpreter import train

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def test_ten_steps_of_two_phases_by_hand() -> None:
    """Head only with a flip, then the last block with batch norm in train mode: SGD written out."""
    phases = [
        phase(steps=5, epochs=None, augment={"hflip": True}, schedule={"name": "linear", "warmup": 2}),
        phase(
            name="two",
            steps=5,
            epochs=None,
            freeze=["stem", "blocks.[0-1]"],
            lr=0.02,
            clip_norm=0.5,
            label_smoothing=0.1,
        ),
    ]
    by_hand, ours = net(), net()
    data = pixels_of("train")
    flipped = 0

    def normalised(ids: np.ndarray, flips: np.ndarray) -> torch.Tensor:
        x = (data.images[torch.from_numpy(ids)].float() / 255 - MEAN) / STD
        return torch.where(torch.from_numpy(flips).view(-1, 1, 1, 1), x.flip(-1), x)

    for index, (name, lr, trains) in enumerate(
        [("one", 0.05, ["head"]), ("two", 0.02, ["head", "blocks.2"])]
    ):
        named = {n: p for n, p in by_hand.named_parameters() if any(n.startswith(t + ".") for t in trains)}
        for n, p in by_hand.named_parameters():
            p.requires_grad_(n in named)
            p.grad = None
        momentum: dict[str, torch.Tensor] = {}
        by_hand.eval()
        if index == 1:
            by_hand.blocks[2].train()
        for step in range(5):
            order = permutation(key(0, name, step // 5, "order"), 50)
            ids = order[step % 5 * 12 : step % 5 * 12 + 12]
            flips = np.zeros(len(ids), bool)
            if index == 0:
                flips = flip_mask(key(0, name, 0, "augment"), ids)
                flipped += int(flips.sum())
            factor = ([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3] if index == 0 else [1] * 5)[step]
            loss = F.cross_entropy(
                by_hand(normalised(ids, flips)),
                data.labels[torch.from_numpy(ids)],
                label_smoothing=0.1 if index == 1 else 0.0,
            )
            for p in named.values():
                p.grad = None
            loss.backward()
            if index == 1:
                torch.nn.utils.clip_grad_norm_(named.values(), 0.5)
            with torch.no_grad():
                for n, p in named.items():
                    decay = 0.0 if n.endswith("bias") or ".norm." in n else 0.01
                    g = p.grad + decay * p
                    momentum[n] = g if n not in momentum else 0.9 * momentum[n] + g
                    p -= lr * factor * momentum[n]

    assert 0 < flipped < 50
    train(plan_for(ours, phase=phases), backbone(ours), source)
    for n, value in by_hand.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[n], value, rtol=1e-5, atol=1e-6, msg=n)


PHASES = {
    "head": [phase(epochs=3)],
    "head-flip": [phase(epochs=3, augment={"hflip": True})],
    "crop-recomputed": [phase(augment={"crop": 2})],
    "crop-views": [phase(epochs=3, augment={"crop": 2, "hflip": True, "views": 3})],
    "suffix-batch-norm": [phase(freeze=["stem", "blocks.0"], lr=0.01, norm="frozen")],
    "suffix-statistics-move": [phase(freeze=["stem", "blocks.0"], lr=0.01)],
    "gradual": [
        phase(),
        phase(name="two", freeze=["stem", "blocks.[0-1]"], lr=0.01),
        phase(name="three", freeze=["stem"], lr=0.01, augment={"hflip": True}, epochs=3),
    ],
    "accumulate-ema": [phase(freeze=["stem"], accumulate=2, ema=0.9, lr=0.01)],
    "thawed-middle": [phase(freeze=["**"], thaw=["blocks.1.norm", "head"], lr=0.01)],
}


def run(
    features: str,
    store: FeatureStore | None = None,
    *,
    precision: str = "fp32",
    dropout: float = 0.2,
    **changes: Any,
) -> tuple[Any, ...]:
    model = net(dropout=dropout, drop_path=0.2)
    told = Recorder()
    compute = {"precision": precision, "features": features}
    result = train(
        plan_for(model, compute=compute, **changes), backbone(model), source, emit=told, store=store
    )
    losses = [epoch["train"]["loss"] for epoch in told.of("epoch")]
    return state(model), losses, result


@pytest.mark.parametrize("name", PHASES)
def test_stored_and_recomputed_features_train_like_the_plain_network(name: str) -> None:
    plain, plain_losses, _ = run("off", phase=PHASES[name])
    for features in ("store", "recompute"):
        weights, losses, result = run(features, phase=PHASES[name])
        assert losses == pytest.approx(plain_losses, abs=1e-5)
        for key_, value in plain.items():
            torch.testing.assert_close(weights[key_], value, rtol=1e-4, atol=1e-5, msg=f"{features} {key_}")
        wanted = "recompute" if name == "crop-recomputed" else features
        assert result.phases[0].prefix["mode"] == wanted


def test_the_same_recipe_twice_gives_the_same_bytes() -> None:
    first, _, _ = run("store", phase=PHASES["gradual"])
    second, _, _ = run("store", phase=PHASES["gradual"])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_stored_and_recomputed_features_are_the_same_numbers() -> None:
    stored, _, _ = run("store", phase=PHASES["gradual"])
    again, _, _ = run("recompute", phase=PHASES["gradual"])
    assert all(torch.equal(stored[name], again[name]) for name in stored)


def test_gradual_unfreezing_passes_the_prefix_once() -> None:
    phases = [
        phase(epochs=3),
        phase(name="two", freeze=["stem", "blocks.[0-1]"], lr=0.01),
        phase(name="three", freeze=["stem", "blocks.0"], lr=0.01),
    ]
    *_, result = run("store", phase=phases)
    assert [p.prefix["images_computed"] for p in result.phases] == [62, 0, 0]


def test_a_second_run_finds_the_features_of_the_first(tmp_path: Any) -> None:
    *_, first = run("store", FeatureStore(tmp_path), phase=[phase()])
    *_, second = run("store", FeatureStore(tmp_path), phase=[phase(lr=0.3)])
    assert first.phases[0].prefix["images_computed"] == 62
    assert second.phases[0].prefix["images_computed"] == 0


def test_what_an_earlier_run_stored_is_chosen_without_measuring(tmp_path: Any, monkeypatch: Any) -> None:
    run("store", FeatureStore(tmp_path), phase=[phase()])
    for measure in ("node_seconds", "_StepClock.seconds"):
        monkeypatch.setattr(f"tlrecipe.training.survey.{measure}", None)
    *_, found = run("auto", FeatureStore(tmp_path), phase=[phase(lr=0.3)])
    assert found.phases[0].prefix["reason"].startswith("found in the store")
    assert found.phases[0].prefix["images_computed"] == 0


@pytest.mark.parametrize(("epochs", "mode"), [(4, "store"), (1, "recompute")])
def test_features_that_an_earlier_pass_gives_cost_no_pass(epochs: int, mode: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(survey._StepClock, "seconds", lambda *_: 1e-3)
    timed = survey._Timed("fp32", "", 8, 1e-3)
    monkeypatch.setattr(survey._PrefixClock, "of", lambda *_: timed)
    late = phase(name="two", freeze=["stem", "blocks.[0-1]"], epochs=1, augment={"hflip": True})
    *_, result = run("auto", phase=[phase(epochs=epochs, augment={"hflip": True}), late])
    assert [done.prefix["mode"] for done in result.phases] == [mode, mode]
    assert result.phases[1].prefix["images_computed"] == 0


def test_stored_test_features_give_the_logits_of_the_bundle(tmp_path: Any) -> None:
    *_, plain = run("recompute", phase=[phase()], dropout=0.0)
    store = FeatureStore(tmp_path)
    *_, stored = run("store", store, phase=[phase()], dropout=0.0)
    assert store.writes == 3, "train, val and test"
    *_, found = run("store", FeatureStore(tmp_path), phase=[phase()], dropout=0.0)
    assert torch.equal(stored.evaluated.evaluation.logits, plain.evaluated.evaluation.logits)
    assert torch.equal(found.evaluated.evaluation.logits, plain.evaluated.evaluation.logits)


def test_tuned_steps_end_close_to_the_layers_own() -> None:
    phases = [phase(), phase(name="two", freeze=["stem", "blocks.0"], lr=0.01, norm="frozen")]
    strict, strict_losses, _ = run("recompute", phase=phases)
    tuned, tuned_losses, result = run("recompute", phase=phases, precision="auto")
    assert result.phases[1].prefix["tuned"]
    assert tuned_losses == pytest.approx(strict_losses, abs=1e-5)
    for name, value in strict.items():
        torch.testing.assert_close(tuned[name], value, rtol=1e-4, atol=1e-5, msg=name)


LATE = [phase(), phase(name="two", freeze=["stem", "blocks.0"], lr=0.01, norm="frozen")]


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [((1.0, 0.5), True), ((1.0, 0.9), False), ((1e-4, 1e-6), False)],
    ids=["clearly-faster", "hardly-faster", "nothing-to-win"],
)
def test_steps_run_in_bfloat16_where_that_is_clearly_faster(
    seconds: tuple[float, float], taken: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tlrecipe.models.fast.native_bf16", lambda _: True)
    # Of the frozen part, which is not asked about here.
    monkeypatch.setattr(survey, "fastest_copy", lambda *given: (fast_copy(*given), "fp32", ""))
    monkeypatch.setattr(survey._StepClock, "seconds", lambda _, autocast: seconds[autocast])
    weights, losses, result = run("recompute", phase=LATE, precision="auto")
    assert [done.prefix["autocast"] for done in result.phases] == [False, taken], "a head alone has none"
    assert ("steps in bfloat16" in result.phases[1].prefix["reason"]) == (seconds[0] == 1.0)
    strict, strict_losses, _ = run("recompute", phase=LATE)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    # Eight bits of a gradient are enough to go the same way, and too few to end in the same weights.
    assert losses == pytest.approx(strict_losses, rel=2e-2)
    assert any(not torch.allclose(weights[name], strict[name], atol=1e-5) for name in strict) == taken


def test_phases_that_share_a_part_share_its_type(monkeypatch: Any) -> None:
    asked = []

    def fastest(network: nn.Module, sample: Tensor) -> tuple[nn.Module, str, str]:
        asked.append(network)
        return fast_copy(network, sample, "bf16"), "bf16", "because"

    monkeypatch.setattr("tlrecipe.models.fast.native_bf16", lambda _: True)
    monkeypatch.setattr(survey, "fastest_copy", fastest)
    three = [*LATE, phase(name="three", freeze=["stem"], lr=0.01)]
    *_, result = run("auto", phase=three, precision="auto")
    assert [done.prefix["precision"] for done in result.phases] == ["bf16"] * 3
    assert len(asked) == 1


def test_bfloat16_that_an_earlier_run_stored_is_not_timed_again(tmp_path: Any, monkeypatch: Any) -> None:
    run("store", FeatureStore(tmp_path), phase=[phase()], precision="bf16")
    monkeypatch.setattr("tlrecipe.models.fast.native_bf16", lambda _: True)
    monkeypatch.setattr(survey, "fastest_copy", None)
    *_, found = run("auto", FeatureStore(tmp_path), phase=[phase(lr=0.3)], precision="auto")
    assert found.phases[0].prefix["reason"].startswith("found in the store")
    assert found.phases[0].prefix["precision"] == "bf16"
    assert found.evaluated.precision == "bf16"


def test_a_longer_first_phase_does_not_change_the_shuffling_of_the_second() -> None:
    assert (permutation(key(0, "two", 0, "order"), 9) == permutation(key(0, "two", 0, "order"), 9)).all()
    plans = [plan_for(net(), phase=[phase(epochs=e), phase(name="two")]) for e in (1, 5)]
    assert plans[0].phases[1] == plans[1].phases[1]
