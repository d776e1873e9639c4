"""NaN and infinity stop a run before they change it, with their cause, and reach no file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.nets import COUNTS, Recorder, backbone, images, net, phase, plan_for, source, state

from tlrecipe.data.mixing import mix_of
from tlrecipe.data.pixels import Pixels
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import Augment
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.planning.randomness import key, permutation
from tlrecipe.training import engine, interpreter, numerics
from tlrecipe.training.evaluate import Evaluation
from tlrecipe.training.features import FeatureStore
from tlrecipe.training.interpreter import Checkpoint, train

NAN, INF = float("nan"), float("inf")
# Of the phase that most of these tests train.
EPOCHS = 2


def stopped(model: nn.Module, saved: list[Checkpoint] | None = None, **options: Any) -> str:
    """The message that a run of ``model`` ends with; it must be of TLR701 and say so by its exit code."""
    more = {name: options.pop(name) for name in ("pixels", "emit", "store") if name in options}
    keep = saved if saved is not None else []
    with pytest.raises(TlrecipeError) as caught:
        train(
            plan_for(model, **options),
            backbone(model),
            more.pop("pixels", source),
            save=lambda point: keep.append(_copied(point)),
            **more,
        )
    (found,) = caught.value.diagnostics
    assert (found.code, caught.value.exit_code) == ("TLR701", 7)
    for point in keep:
        assert numerics.first_not_finite(point.tensors.items()) is None
    return found.message


def _copied(point: Checkpoint) -> Checkpoint:
    return Checkpoint({name: tensor.clone() for name, tensor in point.tensors.items()}, dict(point.values))


def batch_names(step: int, size: int = 12) -> list[str]:
    """Names of the images of a step of the first epoch of phase ``one``."""
    order = permutation(key(0, "one", 0, "order"), COUNTS["train"])
    return [images("train").names[index] for index in order[(step - 1) * size : step * size]]


def poisoned(monkeypatch: pytest.MonkeyPatch, name: str, value: float) -> None:
    """Make one training image's normalised pixels ``value``, as a decoder gone wrong would."""
    place = images("train").names.index(name)
    original = engine.Engine.inputs

    def inputs(self: Any, split: str, ids: Any, epoch: int | None, mix: Any = None) -> tuple[Tensor, ...]:
        tensors = original(self, split, ids, epoch, mix)
        if split == "train":
            for row in [row for row, index in enumerate(ids) if index == place]:
                tensors[0][row] = value
        return tensors

    monkeypatch.setattr(engine.Engine, "inputs", inputs)


class Breaking(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.full_like(gradient, ctx.value), None


class FromCall(nn.Module):
    """Applies a function from its ``start``-th call in train mode on."""

    def __init__(self, function: Callable[[Tensor], Tensor], start: int = 2):
        super().__init__()
        self.function, self.start, self.calls = function, start, 0

    def forward(self, x: Tensor) -> Tensor:
        # What is foreseen of the memory is found on tensors without values.
        if not self.training or not x.requires_grad or x.is_meta:
            return x
        self.calls += 1
        return self.function(x) if self.calls >= self.start else x


def opaque(model: Any, function: Callable[[Tensor], Tensor], start: int = 2) -> Any:
    model.drop = FromCall(function, start)
    return model


# --------------------------------------------------------------------------- losses and gradients


@pytest.mark.case("N01", "N02")
@pytest.mark.parametrize("value", [NAN, INF], ids=["N01-nan", "N02-inf"])
def test_a_poisoned_image_is_named_and_changes_nothing(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    name = batch_names(3)[5]
    poisoned(monkeypatch, name, value)
    saved: list[Checkpoint] = []
    model = net()
    message = stopped(model, saved, phase=[phase(freeze=[])], compute={"features": "off"})
    assert "in phase `one`, step 3 of 10, at the rates all 0.05" in message
    assert "gradient norm nan" in message
    assert f"first not finite: the input made of `{name}`;" in message
    assert all(f"`{name}`" in message for name in batch_names(3)[:8])
    assert message.endswith(" and 4 more")
    last = saved[-1]
    assert last.values["state"]["step"] == 2
    for part, tensor in state(model).items():
        assert torch.equal(tensor, last.tensors[f"model/{part}"]), part


@pytest.mark.case("N01")
def test_an_image_that_is_only_mixed_in_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names = images("train").names
    order = permutation(key(0, "one", 0, "order"), COUNTS["train"])
    ids = order[:12]
    mix = mix_of(Augment(mixup=0.4), key=key(0, "one", 0, "mix"), ids=ids, order=order, side=8)
    assert mix is not None
    poison = next(int(number) for number in mix.partners if number not in ids)
    original = engine.Engine._images

    def poisoned_images(self: Any, split: str, ids: Any, epoch: int | None) -> Tensor:
        tensor = original(self, split, ids, epoch)
        if split == "train":
            tensor[torch.from_numpy(ids == poison)] = NAN
        return tensor

    monkeypatch.setattr(engine.Engine, "_images", poisoned_images)
    message = stopped(net(), phase=[phase(freeze=[], augment={"mixup": 0.4})], compute={"features": "off"})
    assert "step 1 of 10" in message
    assert f"first not finite: the input made of `{names[poison]}`;" in message
    assert f"; mixed with `{names[mix.partners[0]]}`, " in message


@pytest.mark.case("N01")
def test_the_checkpoint_is_the_last_good_step_of_the_undisturbed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[dict[str, Tensor]] = []
    model = net()
    plan = plan_for(model, phase=[phase(freeze=[], ema=0.9)], compute={"features": "off"})
    stop = iter([False, False, True])
    with pytest.raises(engine.Stopped):
        train(
            plan,
            backbone(model),
            source,
            stop=lambda: next(stop),
            save=lambda point: steps.append(dict(_copied(point).tensors)),
        )
    poisoned(monkeypatch, batch_names(4)[0], NAN)
    saved: list[Checkpoint] = []
    stopped(net(), saved, phase=[phase(freeze=[], ema=0.9)], compute={"features": "off"})
    assert steps[-1].keys() == saved[-1].tensors.keys()
    assert all(torch.equal(value, steps[-1][name]) for name, value in saved[-1].tensors.items())


@pytest.mark.case("N01")
def test_a_loss_that_overflows_is_told_from_what_it_is_made_of() -> None:
    message = stopped(net(), phase=[phase(freeze=[], lr=1e6, epochs=9)])
    assert "at the rates all 1e+06; first not finite: the loss;" in message


@pytest.mark.case("N01")
def test_weights_that_overflow_are_named_and_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    def blown(optimizer: torch.optim.Optimizer) -> None:
        next(iter(optimizer.param_groups[0]["params"])).data.fill_(INF)

    monkeypatch.setattr(torch.optim.SGD, "step", blown)
    saved: list[Checkpoint] = []
    message = stopped(net(), saved, phase=[phase(freeze=[])], compute={"features": "off"})
    assert "step 2 of 10" in message
    assert "first not finite: `stem.weight`;" in message
    assert [point.values["state"]["step"] for point in saved] == [0]


@pytest.mark.case("N02")
def test_a_finite_loss_with_an_infinite_gradient_names_the_layer_that_it_comes_from() -> None:
    model = net()
    blocks = model.blocks
    # Three steps are timed before the first is made.
    blocks[1] = nn.Sequential(blocks[1], FromCall(lambda x: Breaking.apply(x, INF), start=5))
    message = stopped(model, phase=[phase(freeze=[])], compute={"features": "off"})
    assert "step 2 of 10" in message
    assert re.match(r"loss [01]\.\d+ with gradient norm nan", message)
    # Behind the breaking layer gradients are sound; the first before it is the norm of block 1.
    assert "first not finite: the gradient of `blocks.1.0.norm." in message


@pytest.mark.case("N06")
def test_no_step_is_skipped_and_no_loss_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision is bfloat16, which has float32's range: there is no scaler that leaves steps out."""
    asked: set[torch.dtype] = set()
    autocast = torch.autocast

    def noted(device: str, dtype: torch.dtype, enabled: bool) -> torch.autocast:
        asked.add(dtype)
        return autocast(device, dtype, enabled)

    monkeypatch.setattr(torch, "autocast", noted)
    saved: list[Checkpoint] = []
    model = opaque(net(), lambda x: Breaking.apply(x, INF), start=1)
    message = stopped(model, saved, phase=[phase(freeze=[])], compute={"features": "off"})
    assert "step 1 of 10" in message
    assert saved[-1].values["state"]["step"] == 0
    assert asked == {torch.bfloat16}


@pytest.mark.case("N01")
def test_a_module_whose_output_is_not_finite_is_named() -> None:
    model = opaque(net(), lambda x: x / 0)
    message = stopped(model, phase=[phase(freeze=[])], compute={"features": "off"})
    assert "first not finite: " in message
    assert "input" not in message


# --------------------------------------------------------------------------- weights and statistics


@pytest.mark.case("N03")
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["blocks.1.norm.running_var", "blocks.2.norm.running_mean"])
def test_statistics_that_are_not_finite_stop_before_validation_and_are_not_saved(
    name: str, value: float
) -> None:
    model, told = net(), Recorder()
    saved: list[Checkpoint] = []

    def meddle(kind: str, /, **fields: Any) -> None:
        told(kind, **fields)
        # Between the last step of the epoch and its validation; the loss does not show it.
        if kind == "step" and fields["step"] == 1:
            model.get_buffer(name)[0] = value

    message = stopped(model, saved, phase=[phase(freeze=["stem"])], emit=meddle, compute={"features": "off"})
    assert f"`{name}` is not finite before validation in phase `one`, after step 5" in message
    assert told.of("epoch") == []
    assert [point.values["state"]["step"] for point in saved] == [0]


@pytest.mark.case("N03")
def test_what_is_not_finite_is_not_saved_even_without_validation() -> None:
    model = net()
    plan = plan_for(model, phase=[phase(freeze=["stem"])], compute={"features": "off"})
    saved: list[Checkpoint] = []

    def meddle(kind: str, /, **fields: Any) -> None:
        if kind == "step" and fields["step"] == 1:
            model.get_buffer("blocks.1.norm.running_var")[0] = INF

    def pixels(split: str, preprocessing: Preprocessing) -> Pixels | None:
        return None if split == "val" else source(split, preprocessing)

    with pytest.raises(TlrecipeError, match=r"norm\.running_var` is not finite and would be saved"):
        train(plan, backbone(model), pixels, emit=meddle, save=saved.append)
    assert len(saved) == 1


@pytest.mark.case("N09")
@pytest.mark.parametrize("features", ["off", "store", "recompute"])
def test_a_frozen_norm_s_statistics_stand_still_byte_for_byte(features: str) -> None:
    model = net(dropout=0.3)
    before = state(model)
    train(
        plan_for(model, phase=[phase(freeze=["@backbone"])], compute={"features": features}),
        backbone(model),
        source,
    )
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if "norm" in name)


@pytest.mark.case("N10")
def test_momentum_and_decay_of_a_phase_before_do_not_reach_what_is_frozen_now() -> None:
    model = net()
    heavy = {"name": "sgd", "weight_decay": 0.5, "momentum": 0.9, "no_decay": []}
    starts: list[dict[str, Tensor]] = []
    saved: list[Checkpoint] = []
    train(
        plan_for(model, optimizer=heavy, phase=[phase(freeze=[]), phase(name="two", freeze=["@backbone"])]),
        backbone(model),
        source,
        emit=lambda kind, /, **fields: starts.append(state(model)) if kind == "phase" else None,
        save=lambda point: saved.append(_copied(point)),
    )
    body = [name for name in starts[1] if not name.startswith("head.")]
    assert all(torch.equal(model.state_dict()[name], starts[1][name]) for name in body)


# --------------------------------------------------------------------------- averages


@pytest.mark.case("N11")
def test_an_average_starts_as_the_weights_are_and_takes_statistics_along() -> None:
    model = net()
    plan = plan_for(model, phase=[phase(freeze=["stem"], steps=1, epochs=None, ema=0.5)])
    at_start = state(model)
    saved: list[Checkpoint] = []
    stop = iter([True])
    with pytest.raises(engine.Stopped):
        train(plan, backbone(model), source, stop=lambda: next(stop), save=lambda p: saved.append(_copied(p)))
    average = {
        n.removeprefix("average/"): t for n, t in saved[-1].tensors.items() if n.startswith("average/")
    }
    after = {n.removeprefix("model/"): t for n, t in saved[-1].tensors.items() if n.startswith("model/")}
    assert {"blocks.0.norm.running_var", "blocks.0.norm.num_batches_tracked", "head.weight"} <= average.keys()
    assert not any(name.startswith("stem") for name in average)
    decay = min(0.5, 1 / 10)
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, at_start[name].lerp(after[name], 1 - decay))
        else:
            assert torch.equal(value, after[name])


@pytest.mark.case("N11")
def test_the_average_is_what_the_next_phase_starts_from_and_its_own_begins_anew() -> None:
    model = net()
    starts: list[dict[str, Tensor]] = []
    saved: list[Checkpoint] = []
    phases = [phase(freeze=[], ema=0.9), phase(name="two", freeze=["stem"], ema=0.9, steps=1, epochs=None)]
    train(
        plan_for(model, phase=phases),
        backbone(model),
        source,
        emit=lambda kind, /, **fields: starts.append(state(model)) if kind == "phase" else None,
        save=lambda point: saved.append(_copied(point)),
    )
    between = next(point for point in saved if point.values["state"]["phase"] == 1)
    assert not any(name.startswith("average/") for name in between.tensors)
    for name, value in starts[1].items():
        assert torch.equal(value, between.tensors[f"model/{name}"])
    plain = net()
    train(plan_for(plain, phase=[phase(freeze=[])]), backbone(plain), source)
    assert not torch.equal(starts[1]["head.weight"], plain.head.weight)


# --------------------------------------------------------------------------- scores, metrics, features


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_scores_that_are_not_finite_stop_with_their_images(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = interpreter.evaluate
    evaluations = itertools.count(1)

    def broken(*arguments: Any, **options: Any) -> Evaluation:
        found = original(*arguments, **options)
        if (split == "val") == (next(evaluations) <= EPOCHS):
            found.logits[4] = NAN
        return found

    monkeypatch.setattr(interpreter, "evaluate", broken)
    # Stored, so that the test split goes the same way as the validation split.
    message = stopped(net(), compute={"features": "store"})
    assert f"`{split}/dog/4.png`" in message
    assert ("after step 5" in message) == (split == "val")


def test_a_metric_that_is_no_number_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([NAN, 0.4, NAN, 0.5])
    original = Evaluation.scalars

    def odd(self: Evaluation, *names: Any) -> dict[str, float]:
        return original(self, *names) | {"accuracy": next(values, 0.0)}

    monkeypatch.setattr(Evaluation, "scalars", odd)
    model = net()
    stop = {"metric": "accuracy", "patience": 4}
    result = train(plan_for(model, phase=[phase(epochs=4, stop=stop)]), backbone(model), source)
    assert result.phases[0].best == {"epoch": 4, "metric": "accuracy", "value": 0.5}


def test_features_that_are_not_finite_are_not_stored_and_their_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = engine.Engine._view

    def view(self: Any, name: str, pixels: Pixels, ids: Any, view: int) -> Tensor:
        made = original(self, name, pixels, ids, view)
        if name == "train" and 7 in ids:
            made[list(ids).index(7)] = INF
        return made

    monkeypatch.setattr(engine.Engine, "_view", view)
    message = stopped(net(), store=FeatureStore(tmp_path), compute={"features": "store"})
    assert f"`{images('train').names[7]}`" in message
    assert list(tmp_path.iterdir()) == []


def test_the_first_tensor_and_all_rows_are_found() -> None:
    assert numerics.first_not_finite([]) is None
    assert numerics.first_not_finite([("counts", torch.tensor([1, 2]))]) is None
    named = [("a", torch.ones(2)), ("b", torch.tensor([1.0, NAN])), ("c", torch.tensor([INF]))]
    assert numerics.first_not_finite(named) == "b"
    assert numerics.rows_not_finite(torch.tensor([[1.0, 2.0], [NAN, 1.0], [1.0, -INF]])) == [1, 2]
