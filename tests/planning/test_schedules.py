"""Schedules are factors: exact at their ends, monotone where they should be, blind to the base rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tlrecipe.language.spec import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    OneCycleSchedule,
    ScheduleSpec,
    StepSchedule,
)
from tlrecipe.planning.schedules import factor, warmup_steps

ALL: list[ScheduleSpec] = [
    ConstantSchedule(name="constant"),
    LinearSchedule(name="linear", final=0.1),
    CosineSchedule(name="cosine", final=0.1),
    StepSchedule(name="step", milestones=(0.5, 0.8), factor=0.2),
    OneCycleSchedule(name="one_cycle"),
]


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
@given(steps=st.integers(1, 200), data=st.data())
def test_factors_stay_between_zero_and_one_and_peak_after_the_warmup(
    schedule: ScheduleSpec, steps: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    curve = [factor(schedule, step, steps, warmup) for step in range(steps)]
    assert all(0 <= value <= 1 for value in curve)
    assert curve[warmup] == pytest.approx(
        schedule.factor if _past(schedule, warmup, steps) else 1.0
    ) or isinstance(schedule, StepSchedule)
    assert all(b >= a for a, b in zip(curve[:warmup], curve[1 : warmup + 1], strict=False)) or isinstance(
        schedule, StepSchedule
    )
    assert all(b <= a + 1e-12 for a, b in zip(curve[warmup:], curve[warmup + 1 :], strict=False))


def _past(schedule: ScheduleSpec, step: int, steps: int) -> bool:
    return isinstance(schedule, StepSchedule) and step / steps >= schedule.milestones[0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ALL[0], [1, 1, 1, 1]),
        (LinearSchedule(name="linear"), [1, 0.75, 0.5, 0.25]),
        (CosineSchedule(name="cosine"), [1, 0.853553, 0.5, 0.146447]),
        (StepSchedule(name="step", milestones=(0.5, 0.75), factor=0.1), [1, 1, 0.1, 0.01]),
        (OneCycleSchedule(name="one_cycle", start=0.5, final=0.0), [1, 0.853553, 0.5, 0.146447]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_four_steps_without_warmup(schedule: ScheduleSpec, expected: list[float]) -> None:
    assert [factor(schedule, step, 4, 0) for step in range(4)] == pytest.approx(expected, abs=1e-6)


def test_warmup_rises_in_equal_steps() -> None:
    curve = [factor(ALL[0], step, 10, 3) for step in range(5)]
    assert curve == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_warmup_is_steps_or_a_fraction() -> None:
    assert warmup_steps(CosineSchedule(name="cosine", warmup=7), 100) == 7
    assert warmup_steps(CosineSchedule(name="cosine", warmup=0.1), 100) == 10
