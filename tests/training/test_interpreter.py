"""What phases do, by running them: optimizers, schedules, stopping, best weights, averages, numbers."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from training.nets import Recorder, backbone, net, phase, plan_for, source, state

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import OptimizerSpec, ScheduleSpec
from tlrecipe.models import inference
from tlrecipe.training.engine import Stopped
from tlrecipe.training.interpreter import Checkpoint, train
from tlrecipe.training.metrics import METRICS
from tlrecipe.training.optimizers import OPTIMIZERS

OPTIMIZER_NAMES = ["sgd", "adam", "adamw", "rmsprop"]
SCHEDULE_NAMES = ["constant", "linear", "cosine", "step", "one_cycle"]


def trained(**changes: Any) -> tuple[Any, Recorder, Any]:
    model, told = net(dropout=0.1), Recorder()
    result = train(plan_for(model, **changes), backbone(model), source, emit=told)
    return model, told, result


def test_every_optimizer_of_the_grammar_has_a_row_and_every_row_a_class() -> None:
    assert set(OPTIMIZERS) == set(get_args(get_args(OptimizerSpec)[0]))
    assert len(get_args(get_args(ScheduleSpec)[0])) == len(SCHEDULE_NAMES)


@pytest.mark.parametrize("name", OPTIMIZER_NAMES)
def test_each_optimizer_learns_and_keeps_decay_from_norms(name: str) -> None:
    _, told, _ = trained(
        optimizer={"name": name, "weight_decay": 0.01}, phase=[phase(freeze=[], epochs=6, lr=0.01)]
    )
    losses = [epoch["train"]["loss"] for epoch in told.of("epoch")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_each_schedule_drives_the_rates(name: str) -> None:
    _, told, _ = trained(phase=[phase(schedule={"name": name, "warmup": 2}, epochs=3)])
    plan = plan_for(net(), phase=[phase(schedule={"name": name, "warmup": 2}, epochs=3)])
    for epoch in told.of("epoch"):
        assert epoch["lr"]["all"] == plan.phases[0].rates(epoch["step"] - 1)[0]


def test_the_network_learns_the_colours() -> None:
    _, _, result = trained(phase=[phase(freeze=[], epochs=12, lr=0.05)])
    assert result.metrics["test"]["accuracy"] > 0.8
    assert result.metrics["test"]["count"] == 12


@pytest.mark.case("C16")
def test_early_stopping_waits_and_the_best_is_kept() -> None:
    stop = {"metric": "accuracy", "patience": 2}
    _, told, result = trained(phase=[phase(epochs=50, lr=1e-9, stop=stop)], final_weights="best")
    assert len(told.of("epoch")) == 3
    assert result.phases[0].best["epoch"] == 1
    assert result.phases[0].epochs == 3


def test_final_weights_best_are_those_of_the_best_epoch() -> None:
    weights: dict[int, Any] = {}
    model, told = net(), Recorder()

    def emit(kind: str, /, **fields: Any) -> None:
        told(kind, **fields)
        if kind == "epoch":
            weights[fields["epoch"]] = state(model)

    plan = plan_for(model, phase=[phase(freeze=[], epochs=6, lr=0.5)], final_weights="best")
    result = train(plan, backbone(model), source, emit=emit)
    best = result.phases[0].best["epoch"]
    assert best == max(told.of("epoch"), key=lambda e: (e["val"]["accuracy"], -e["epoch"]))["epoch"]
    assert all(torch.equal(model.state_dict()[n], v) for n, v in weights[best].items())


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_epoch_is_that_of_the_chosen_metric(metric: str) -> None:
    """Any metric serves; what the run reports about the validation split is that epoch's."""
    if metric == "top5_accuracy":
        pytest.skip("three classes have no top five")
    one = phase(freeze=[], epochs=5, lr=0.4, best_metric=metric)
    _, told, result = trained(phase=[one], final_weights="best")
    sign = 1 if METRICS[metric].higher_is_better else -1
    epochs = told.of("epoch")
    best = max(epochs, key=lambda e: (sign * e["val"][metric], -e["epoch"]))
    assert result.phases[0].best == {"epoch": best["epoch"], "metric": metric, "value": best["val"][metric]}
    assert result.metrics["val"] == best["val"]


def test_stopping_watches_one_metric_and_the_best_is_by_another() -> None:
    stop = {"metric": "loss", "patience": 1, "min_delta": 10.0}
    one = phase(freeze=[], epochs=9, lr=0.05, stop=stop, best_metric="accuracy")
    _, told, result = trained(phase=[one])
    epochs = told.of("epoch")
    # No loss ever improves by 10, so the second epoch is the last; the best may be that one.
    assert len(epochs) == 2
    best = max(epochs, key=lambda e: (e["val"]["accuracy"], -e["epoch"]))
    assert result.phases[0].best["epoch"] == best["epoch"]


def test_start_from_best_starts_the_next_phase_there() -> None:
    model = net()
    starts: list[Any] = []

    def emit(kind: str, /, **fields: Any) -> None:
        if kind == "phase":
            starts.append(state(model))

    weights: list[Any] = []
    plan = plan_for(
        model, phase=[phase(freeze=[], epochs=5, lr=0.5), phase(name="two", start_from="best", epochs=1)]
    )
    result = train(
        plan,
        backbone(model),
        source,
        emit=lambda kind, /, **f: (
            emit(kind, **f),
            weights.append(state(model)) if kind == "epoch" else None,
        )[0],
    )
    best = weights[result.phases[0].best["epoch"] - 1]
    assert all(torch.equal(starts[1][n], v) for n, v in best.items())


@pytest.mark.case("E12", "N11")
def test_an_average_is_what_is_evaluated_and_kept() -> None:
    model, told, result = trained(phase=[phase(freeze=[], epochs=3, lr=0.1, ema=0.9)])
    plain, plain_told, plain_result = trained(phase=[phase(freeze=[], epochs=3, lr=0.1)])
    assert [e["train"] for e in told.of("epoch")] == [e["train"] for e in plain_told.of("epoch")]
    assert told.of("epoch")[-1]["val"] != plain_told.of("epoch")[-1]["val"]
    assert not torch.equal(model.head.weight, plain.head.weight)
    assert (result.weights, plain_result.weights) == ("ema", "raw")


def test_accumulation_is_one_large_batch_where_no_statistics_are_involved() -> None:
    small, _, _ = _without_dropout(phase=[phase(batch_size=6, accumulate=4)])
    large, _, _ = _without_dropout(phase=[phase(batch_size=24)])
    torch.testing.assert_close(small.head.weight, large.head.weight, rtol=1e-5, atol=1e-7)


def _without_dropout(**changes: Any) -> tuple[Any, Recorder, Any]:
    model, told = net(), Recorder()
    return model, told, train(plan_for(model, **changes), backbone(model), source, emit=told)


@pytest.mark.case("N01")
def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    model = net()
    with pytest.raises(TlrecipeError) as caught:
        train(plan_for(model, phase=[phase(freeze=[], lr=1e6, epochs=9)]), backbone(model), source)
    (found,) = caught.value.diagnostics
    assert found.code == "TLR701"
    assert "train/" in found.message
    assert "phase `one`, step" in found.message
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained()
    assert torch.equal(torch.rand(3), expected)


EVERYTHING = [
    phase(augment={"hflip": True, "crop": 2}, schedule={"name": "cosine", "warmup": 2}),
    phase(
        name="two",
        freeze=["stem", "blocks.0"],
        lr=0.01,
        accumulate=2,
        ema=0.9,
        clip_norm=1.0,
        epochs=3,
        optimizer={"name": "adamw", "weight_decay": 0.1},
        augment={"hflip": True},
        layer_decay=0.8,
        stop={"metric": "loss", "patience": 1},
    ),
    phase(name="three", freeze=["stem"], lr=0.01, start_from="best", label_smoothing=0.1),
]


def undisturbed() -> tuple[dict[str, Any], list[Any], Any]:
    model, told = net(dropout=0.2, drop_path=0.2), Recorder()
    result = train(plan_for(model, phase=EVERYTHING), backbone(model), source, emit=told)
    return state(model), _records(told), result


def _records(told: Recorder) -> list[Any]:
    rows = [(kind, {k: v for k, v in f.items() if k != "seconds"}) for kind, f in told.events]
    return [row for row in rows if row[0] in ("epoch", "test")]


# Training and validation losses of every epoch of EVERYTHING, and the test loss: recorded once, so that a
# change of meaning is seen even where all parts still agree with each other.
GOLDEN = [
    ("one", 1, 1.110027, 0.923113),
    ("one", 2, 0.827527, 0.785773),
    ("two", 1, 0.810436, 0.554755),
    ("two", 2, 0.543707, 0.381005),
    ("two", 3, 0.398459, 0.228233),
    ("three", 1, 0.597157, 0.189830),
    ("three", 2, 0.503267, 0.130238),
]


def test_the_golden_run() -> None:
    _, records, _ = undisturbed()
    epochs = [fields for kind, fields in records if kind == "epoch"]
    told = [(e["phase"], e["epoch"], e["train"]["loss"], e["val"]["loss"]) for e in epochs]
    assert [row[:2] for row in told] == [row[:2] for row in GOLDEN]
    assert [row[2:] for row in told] == [pytest.approx(row[2:], abs=2e-4) for row in GOLDEN]
    assert records[-1][1]["loss"] == pytest.approx(0.127915, abs=2e-4)


def test_the_precision_of_the_final_evaluation_is_part_of_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is timed, and a machine may answer otherwise the next time."""
    answers = iter(["bf16", "fp32"])
    monkeypatch.setattr(inference, "settled", lambda wanted, _: None if wanted == "auto" else (wanted, ""))
    monkeypatch.setattr(inference, "fastest_copy", lambda network, _: (network, next(answers), ""))
    saved: list[Checkpoint] = []
    plan, model = plan_for(net(), phase=[phase(freeze=["stem"])]), net()
    through = train(plan, backbone(model), source, save=lambda c: saved.append(_through_disk(c)))
    resumed = train(plan, backbone(net()), source, resume=saved[0])
    assert through.precision == resumed.precision == "bf16"


def _through_disk(checkpoint: Checkpoint) -> Checkpoint:
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    return Checkpoint(tensors, json.loads(json.dumps(checkpoint.values)))


@pytest.mark.case("C14")
def test_a_run_stopped_after_any_step_and_resumed_is_the_run_that_was_never_stopped() -> None:
    weights, records, result = undisturbed()
    steps = sum(p.steps for p in result.phases)
    for stop_at in range(1, steps + 1):
        asked, saved = [0], []
        model, told = net(dropout=0.2, drop_path=0.2), Recorder()

        def stop(asked: list[int] = asked, stop_at: int = stop_at) -> bool:
            asked[0] += 1
            return asked[0] == stop_at

        def save(checkpoint: Checkpoint, saved: list[Checkpoint] = saved) -> None:
            saved[:] = [_through_disk(checkpoint)]

        plan = plan_for(model, phase=EVERYTHING)
        try:
            train(plan, backbone(model), source, emit=told, save=save, stop=stop)
        except Stopped:
            kept = _records(told)[: saved[0].values["state"]["records"]]
            model, told = net(dropout=0.2, drop_path=0.2), Recorder()
            train(plan, backbone(model), source, emit=told, resume=saved[0])
            assert kept + _records(told) == records, stop_at
        assert all(torch.equal(model.state_dict()[n], v) for n, v in weights.items()), stop_at
