"""Every field of a checkpoint is needed: without it, or with another value, a resume is refused or is seen
to end elsewhere.

The fields are those of real checkpoints, so a new one is covered from its first day.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor
from training.nets import Recorder, backbone, net, plan_for, source, state
from training.test_interpreter import EVERYTHING

from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.training.interpreter import Checkpoint, train

Place = tuple[str | int, ...]

# Of three phases, the second averages, and stops early; in it and in the last one, the first epoch is the
# best, since ties keep the earlier: so that all a checkpoint holds decides about something.
STOPPING = {**EVERYTHING[1], "epochs": 4, "stop": {"metric": "loss", "patience": 2, "min_delta": 10.0}}
PHASES = [EVERYTHING[0], STOPPING | {"best_metric": "accuracy"}, EVERYTHING[2]]
PLAN = plan_for(net(), phase=PHASES, final_weights="best")
# Steps into the second and the third phase: within their second epochs.
INTO_THE_SECOND, INTO_THE_THIRD = 5, 7
# What a clock said is part of no result; that it is there is checked all the same.
CLOCKS = ("seconds", "clocks")


def checkpoints() -> dict[str, Checkpoint]:
    """Within the second phase, between two phases, within the third, and the last one of a run."""
    saved: list[Checkpoint] = []
    model = net(dropout=0.2, drop_path=0.2)
    train(PLAN, backbone(model), source, save=lambda c: saved.append(_kept(c)), save_now=lambda: True)
    at = {(c.values["state"]["phase"], c.values["state"]["step"]): c for c in saved}
    within = {"within": at[1, INTO_THE_SECOND], "late": at[2, INTO_THE_THIRD]}
    assert all(checkpoint.values["state"]["best"]["epoch"] == 1 for checkpoint in within.values())
    return {**within, "between": at[2, 0], "end": at[3, 0]}


def _kept(checkpoint: Checkpoint) -> Checkpoint:
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    return Checkpoint(tensors, json.loads(json.dumps(checkpoint.values)))


@pytest.fixture(scope="module")
def saved() -> dict[str, Checkpoint]:
    return checkpoints()


def outcome(checkpoint: Checkpoint) -> Any:
    """All that a run resumed from ``checkpoint`` gives, without what clocks say; or its refusal."""
    model, told = net(dropout=0.2, drop_path=0.2), Recorder()
    try:
        result = train(PLAN, backbone(model), source, emit=told, resume=checkpoint)
    except TlrecipeError as error:
        assert [d.code for d in error.diagnostics] == ["TLR602"]
        return "refused"
    events = [(kind, _timeless(f)) for kind, f in told.events if kind not in ("step", "features")]
    weights = {name: tensor.numpy().tobytes() for name, tensor in state(model).items()}
    # What a finished phase took is read from the checkpoint; what goes on is timed again.
    phases = [asdict(phase) for phase in result.phases]
    finished = checkpoint.values["state"]["phase"]
    return weights, events, phases[:finished] + [_timeless(p) for p in phases[finished:]], result.metrics


def _timeless(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in CLOCKS}


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place in plain values: tables, lists, and what stands in them."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*at, index))


def without(values: Any, place: Place) -> Any:
    changed = copy.deepcopy(values)
    del _holder(changed, place)[place[-1]]
    return changed


def with_another(values: Any, place: Place) -> Any:
    changed = copy.deepcopy(values)
    holder = _holder(changed, place)
    holder[place[-1]] = _another(holder[place[-1]])
    return changed


def _holder(values: Any, place: Place) -> Any:
    for part in place[:-1]:
        values = values[part]
    return values


def _another(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value + 0.25
        case str():
            return value + "x"
        case None:
            return "x"
        case list():
            return [*value, "x"]
    return {**value, "x": 0}


def _is_clock(place: Place) -> bool:
    return place[0] == "state" and place[1:2] in [(clock,) for clock in CLOCKS]


@pytest.mark.case("C13", "C22")
@pytest.mark.parametrize("moment", ["within", "between", "late", "end"])
def test_a_checkpoint_that_lacks_a_field_is_refused(moment: str, saved: dict[str, Checkpoint]) -> None:
    checkpoint = saved[moment]
    fields = [place for place in places(checkpoint.values) if isinstance(place[-1], str) and _of_us(place)]
    assert {"state", "choices", "precision", "stateless"} < {place[0] for place in fields} | {
        place[-1] for place in fields
    }
    for place in fields:
        assert outcome(Checkpoint(checkpoint.tensors, without(checkpoint.values, place))) == "refused", place


def _of_us(place: Place) -> bool:
    """Whether a field is the checkpoint's own; which metrics an evaluation gives is not its business."""
    return place[:2] not in (("state", "last_val"), ("state", "best_val")) or len(place) == 2


@pytest.mark.case("C13", "C22")
@pytest.mark.parametrize("change", ["without", "with another"])
def test_any_other_value_is_refused_or_ends_elsewhere(change: str, saved: dict[str, Checkpoint]) -> None:
    """Each place in at least one of the checkpoints that have it: the last validation matters at the end."""
    seen: set[Place] = set()
    silent: set[Place] = set()
    for moment in ("end", "between", "late", "within"):
        checkpoint = saved[moment]
        as_it_is = outcome(checkpoint)
        for place in places(checkpoint.values):
            if place in seen or _is_clock(place):
                continue
            changed = (without if change == "without" else with_another)(checkpoint.values, place)
            red = outcome(Checkpoint(checkpoint.tensors, changed)) != as_it_is
            (seen if red else silent).add(place)
    assert silent - seen == set()


@pytest.mark.case("C13")
def test_a_checkpoint_that_lacks_any_tensor_is_refused(saved: dict[str, Checkpoint]) -> None:
    checkpoint = saved["within"]
    classes = {name.partition("/")[0] for name in checkpoint.tensors}
    assert classes == {"model", "optimizer", "average", "best"}
    for name in checkpoint.tensors:
        tensors = {other: tensor for other, tensor in checkpoint.tensors.items() if other != name}
        assert outcome(Checkpoint(tensors, checkpoint.values)) == "refused", name
    for gone in classes:
        tensors = {n: t for n, t in checkpoint.tensors.items() if n.partition("/")[0] != gone}
        assert outcome(Checkpoint(tensors, checkpoint.values)) == "refused", gone


@pytest.mark.parametrize("part", ["model", "optimizer", "average", "best"])
def test_other_numbers_end_elsewhere(part: str, saved: dict[str, Checkpoint]) -> None:
    # The best of the third phase is what the run ends with.
    checkpoint = saved["late" if part == "best" else "within"]
    as_it_is = outcome(checkpoint)
    # Whole numbers of an average are those of the network, and are taken from there at the next step.
    names = [n for n, t in checkpoint.tensors.items() if n.startswith(f"{part}/") and t.is_floating_point()]
    for name in (names[0], names[-1]):
        tensors: dict[str, Tensor] = dict(checkpoint.tensors)
        tensors[name] = tensors[name] + 1
        assert outcome(Checkpoint(tensors, checkpoint.values)) != as_it_is, name
        tensors[name] = torch.zeros(7)
        assert outcome(Checkpoint(tensors, checkpoint.values)) == "refused", name


@pytest.mark.case("C13")
@pytest.mark.parametrize("extra", ["model/evil", "optimizer/head.weight/evil", "best/evil", "other/x"])
def test_a_checkpoint_with_a_tensor_too_many_is_refused(extra: str, saved: dict[str, Checkpoint]) -> None:
    checkpoint = saved["within"]
    assert outcome(Checkpoint({**checkpoint.tensors, extra: torch.zeros(2)}, checkpoint.values)) == "refused"
