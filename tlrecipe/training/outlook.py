"""The work that a run still has to do, and what it is foreseen to take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from tlrecipe.models.prefix import Split
from tlrecipe.planning.plan import PhasePlan, Plan
from tlrecipe.training.survey import Choice, PixelSource, passed_before, preprocessing_of

# Of a forward and backward pass, the forward pass takes about a third: as many operations for the gradient
# of the weights, and as many for that of the inputs.
_FORWARD = 1 / 3


@dataclass(frozen=True)
class Work:
    """Some work of a run: what the events of its kind count."""

    kind: Literal["data", "features", "step", "evaluation"]
    phase: str | None
    """None for the evaluation of the finished network."""
    units: int
    """Images; of ``step``, optimizer steps. Of an evaluation, the images of all epochs together."""
    done: int = 0
    seconds_each: float | None = None
    """Foreseen for one unit; None where nothing was measured yet."""
    may_end: bool = False
    """Whether a stop rule may end it before all units are done."""


def outlook(
    plan: Plan, splits: Sequence[Split], choices: Sequence[Choice], pixels: PixelSource, phase: int, step: int
) -> Iterator[Work]:
    """What is left of a run after ``step`` steps of ``phase``, in order.

    ``splits`` and ``choices`` are those of :func:`tlrecipe.training.survey.survey`. ``pixels`` has decoded
    the images for the first phase.
    """
    val, before = plan.counts.get("val", 0), plan.phases[0]
    for current in plan.phases[phase:]:
        choice, name, passed = choices[current.index], current.name, step if current.index == phase else 0
        if _decoded_again(plan, before, current, pixels):
            yield Work("data", name, plan.counts["train"] + val)
        before = current
        if not passed:
            images = _stored(plan, current, splits[current.index], choices)
            yield Work("features", name, images, seconds_each=choice.prefix_seconds)
        early = current.stop is not None
        each = _known(choice, choice.step_seconds + _recomputed(choice))
        batch = min(current.batch_size * current.accumulate, plan.counts["train"])
        seconds = None if each is None else each * batch
        yield Work("step", name, current.steps, passed, seconds, early)
        if val:
            epochs = ceil(current.epochs)
            each = _known(choice, choice.step_seconds * _FORWARD + _recomputed(choice))
            yield Work("evaluation", name, epochs * val, passed // current.steps_per_epoch * val, each, early)
    if tested := plan.counts.get("test", val):
        choice = choices[-1]
        forward = choice.step_seconds * _FORWARD + choice.prefix_seconds
        yield Work(
            "evaluation", None, tested, seconds_each=_known(choice, forward * (2 if plan.test_flip else 1))
        )


def _stored(plan: Plan, phase: PhasePlan, parts: Split, choices: Sequence[Choice]) -> int:
    """Images that go through the prefix of a phase to be stored; none that an earlier run or phase stored."""
    choice = choices[phase.index]
    if choice.mode != "store" or not choice.prefix_seconds:
        return 0
    if passed_before(plan, phase, parts, choice, choices):
        return 0
    return plan.counts["train"] * choice.views + plan.counts.get("val", 0)


def _recomputed(choice: Choice) -> float:
    return choice.prefix_seconds if choice.mode == "recompute" else 0.0


def _known(choice: Choice, seconds: float) -> float | None:
    return seconds if choice.step_seconds else None


def _decoded_again(plan: Plan, before: PhasePlan, phase: PhasePlan, pixels: PixelSource) -> bool:
    if phase.size == before.size:
        return False
    train = pixels("train", preprocessing_of(plan, plan.phases[0]))
    return train is not None and not train.serves(preprocessing_of(plan, phase))
