"""Mixing, sampling, class weights and the methods that hold on to weights, by running them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from training.nets import COUNTS, Recorder, backbone, net, phase, plan_for, source, state

from tlrecipe.data.augment import augment_batch
from tlrecipe.data.mixing import mix_of
from tlrecipe.data.preprocess import normalise
from tlrecipe.data.sampling import epoch_order
from tlrecipe.planning.randomness import key
from tlrecipe.training.engine import Stopped, views_of
from tlrecipe.training.interpreter import Checkpoint, train


def run(one: dict[str, Any], **changes: Any) -> tuple[Any, Recorder, Any]:
    model, told = net(), Recorder()
    result = train(plan_for(model, phase=[one], **changes), backbone(model), source, emit=told)
    return model, told, result


MIXES = [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "hflip": True}]


@pytest.mark.parametrize("augment", MIXES)
@pytest.mark.parametrize("features", ["off", "auto"])
def test_a_step_with_mixed_images_is_the_plain_step(augment: dict[str, Any], features: str) -> None:
    """Whole first epoch in one batch, against images mixed and a loss formed here."""
    one = phase(freeze=["stem"], epochs=1, lr=0.1, augment=augment, batch_size=COUNTS["train"])
    model, _, result = run(one, compute={"features": features}, optimizer={"name": "sgd", "momentum": 0.0})
    if features == "auto":
        assert result.phases[0].prefix["mode"] == "recompute"
    plain = net()
    plan = plan_for(plain, phase=[one])
    now, spec = plan.phases[0], plan.phases[0].augment
    assert views_of(spec) is None
    data = source("train", plan.preprocessing)
    assert data is not None
    ids = epoch_order("once", key(0, "one", 0, "order"), data.labels.numpy())
    mix = mix_of(spec, key=key(0, "one", 0, "mix"), ids=ids, order=ids, side=now.size)
    assert mix is not None

    def floats(rows: Any) -> torch.Tensor:
        images = data.batch(torch.from_numpy(rows), plan.preprocessing)
        images = augment_batch(images, spec, key=key(0, "one", 0, "augment"), ids=rows)
        return normalise(images, plan.preprocessing)

    own, other = floats(ids), floats(mix.partners)
    share = torch.from_numpy(mix.opacity).float()[:, None, None, None]
    images = own * share + other * (1 - share)
    for row, (left, top, width, height) in enumerate(mix.boxes):
        window = (row, slice(None), slice(top, top + height), slice(left, left + width))
        images[window] = other[window]
    targets = torch.zeros(len(ids), 3)
    own_share = torch.from_numpy(mix.share).float()
    targets[torch.arange(len(ids)), data.labels[ids]] += own_share
    targets[torch.arange(len(ids)), data.labels[mix.partners]] += 1 - own_share
    plain.train()
    torch.nn.functional.cross_entropy(plain(images), targets).backward()
    for name, parameter in plain.named_parameters():
        if not name.startswith("stem"):
            moved = parameter.detach() - 0.1 * parameter.grad
            assert torch.allclose(model.state_dict()[name], moved, atol=2e-5), name


def test_balanced_sampling_trains_on_equally_many_of_each_class() -> None:
    """Stored and recomputed features serve repeated images alike, each occurrence with its own flip."""

    def rare(split: str, preprocessing: Any) -> Any:
        pixels = source(split, preprocessing)
        if pixels is None or split != "train":
            return pixels
        labels = torch.where(torch.arange(50) < 5, 1, 0)
        return replace(pixels, labels=labels)

    ends = []
    for features in ("store", "recompute", "off"):
        model = net()
        one = phase(sampling="balanced", augment={"hflip": True}, epochs=3, lr=0.5)
        plan = plan_for(model, phase=[one], compute={"features": features, "precision": "fp32"})
        train(plan, backbone(model), rare)
        ends.append(state(model))
    for other in ends[1:]:
        assert all(torch.allclose(ends[0][name], other[name], atol=1e-4) for name in ends[0])
    bias = ends[0]["head.bias"]
    # As many of the rare class as of the other, so that neither is preferred from the start.
    once, _, _ = run(phase(augment={"hflip": True}, epochs=3, lr=0.5))
    assert not torch.equal(once.state_dict()["head.bias"], bias)


def test_class_weights_reach_the_loss() -> None:
    info = {"loss": {"name": "focal", "class_weights": {"cat": 4.0}}}
    plan = plan_for(net(), phase=[phase()], **info)
    assert plan.phases[0].class_weights is None  # the toy data do not say how many images a class has
    weighted = replace(plan, phases=(replace(plan.phases[0], class_weights=(4.0, 1.0, 1.0)),))
    ends = []
    for each in (plan, weighted):
        model = net()
        train(each, backbone(model), source)
        ends.append(model.state_dict()["head.bias"])
    assert ends[1][0] > ends[0][0]


def test_l2_sp_pulls_back_what_a_phase_before_has_moved() -> None:
    """Towards the pretrained weights, and not those that the phase starts from."""
    origin = state(net())
    away = phase(freeze=[], epochs=2, lr=0.1)
    distances = []
    for strength in (None, 0.5):
        model = net()
        back = phase(name="two", freeze=["@head"], epochs=8, lr=0.1, l2_sp=strength)
        train(plan_for(model, phase=[away, back]), backbone(model), source)
        moved = [model.state_dict()[n] - origin[n] for n, _ in model.named_parameters() if "head" not in n]
        distances.append(sum(float(part.square().sum()) for part in moved))
    assert distances[1] < distances[0] * 0.7


def test_the_gradient_of_l2_sp_is_that_of_its_penalty() -> None:
    one = phase(freeze=[], epochs=1, lr=0.1, batch_size=50, l2_sp=0.3, norm="frozen")
    two = phase(name="two", freeze=[], epochs=1, lr=0.1, batch_size=50, l2_sp=0.3, norm="frozen")
    optimizer = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.01}
    model = net()
    plan = plan_for(model, phase=[one, two], optimizer=optimizer)
    decays = {group.weight_decay for group in plan.phases[0].groups if group.params[0].startswith("head")}
    assert 0.01 in decays
    assert {g.weight_decay for g in plan.phases[0].groups if "stem.weight" in g.params} == {0.0}
    train(plan, backbone(model), source)
    plain, origin = net(), state(net())
    data = source("train", plan.preprocessing)
    assert data is not None
    images = normalise(data.batch(torch.arange(50), plan.preprocessing), plan.preprocessing)
    for _ in range(2):
        plain.zero_grad()
        loss = torch.nn.functional.cross_entropy(plain(images), data.labels)
        for name, parameter in plain.named_parameters():
            if "head" not in name:
                loss = loss + 0.15 * (parameter - origin[name]).square().sum()
        loss = loss + 0.005 * plain.head.weight.square().sum()
        loss.backward()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter -= 0.1 * parameter.grad
    for name, value in plain.named_parameters():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-5), name


HEAD_FIRST = phase(epochs=1)


def wise(**changes: Any) -> list[dict[str, Any]]:
    return [HEAD_FIRST, phase(name="two", freeze=["stem"], epochs=2, lr=0.1, **changes)]


@pytest.mark.parametrize("average", [None, 0.5])
def test_wise_ft_ends_between_the_start_and_the_end_of_its_phase(average: float | None) -> None:
    def end(phases: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        model = net()
        train(plan_for(model, phase=phases), backbone(model), source)
        return state(model)

    start, plain = end([HEAD_FIRST]), end(wise(ema=average))
    found = end(wise(ema=average, wise_ft=0.25))
    for name, value in found.items():
        if value.is_floating_point():
            assert torch.allclose(value, start[name].lerp(plain[name], 0.25), atol=1e-6), name


def test_what_is_evaluated_after_each_epoch_is_the_interpolation() -> None:
    model, told = net(), Recorder()
    train(plan_for(model, phase=wise(wise_ft=0.25, ema=None)), backbone(model), source, emit=told)
    val = source("val", plan_for(net()).preprocessing)
    assert val is not None
    p = plan_for(net()).preprocessing
    images = normalise(val.batch(torch.arange(12), p), p)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.eval()(images), val.labels)
    assert told.of("epoch")[-1]["val"]["loss"] == pytest.approx(float(loss), abs=1e-4)


def test_options_resume_to_the_same_bytes() -> None:
    phases = [
        HEAD_FIRST,
        phase(
            name="two",
            freeze=["stem"],
            epochs=3,
            lr=0.1,
            wise_ft=0.5,
            l2_sp=0.1,
            sampling="balanced",
            augment={"mixup": 0.4, "cutmix": 1.0, "color_jitter": {"hue": 0.1}},
            loss={"name": "focal"},
            stop={"metric": "macro_f1", "patience": 9},
        ),
    ]
    whole = net()
    train(plan_for(whole, phase=phases), backbone(whole), source)
    for after in (7, 12):
        steps = 0
        saved: list[Checkpoint] = []

        def stop(after: int = after) -> bool:
            nonlocal steps
            steps += 1
            return steps > after

        def save(point: Checkpoint, saved: list[Checkpoint] = saved) -> None:
            tensors = {name: value.clone() for name, value in point.tensors.items()}
            saved.append(Checkpoint(tensors, point.values))

        model = net()
        with pytest.raises(Stopped):
            train(plan_for(model, phase=phases), backbone(model), source, save=save, stop=stop)
        model = net()
        train(plan_for(model, phase=phases), backbone(model), source, resume=saved[-1])
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in state(model).items())


def test_a_flipped_test_is_the_mean_of_both_probabilities() -> None:
    from tlrecipe.models.inference import Inference

    model = net()
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(6, 3, 16, 16)
    found = Inference(model, ["head"], 16, precision="fp32", flip=True).logits(images).softmax(1)
    with torch.no_grad():
        wanted = (model(images).softmax(1) + model(images.flip(3)).softmax(1)) / 2
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, model(images).softmax(1), atol=1e-3)


def test_a_run_evaluates_with_the_flip_of_its_recipe() -> None:
    plain, flipped = (run(phase(epochs=1), test_flip=flip)[2] for flip in (False, True))
    assert plain.metrics["val"] == flipped.metrics["val"]
    assert plain.metrics["test"]["loss"] != flipped.metrics["test"]["loss"]
