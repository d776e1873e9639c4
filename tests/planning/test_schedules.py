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
def test_factors_stay_between_zero_and_one(schedule: ScheduleSpec, steps: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    assert all(0 <= factor(schedule, step, steps, warmup) <= 1 for step in range(steps))


@pytest.mark.parametrize("schedule", [s for s in ALL if s.name != "step"], ids=lambda s: s.name)
@given(steps=st.integers(1, 200), data=st.data())
def test_smooth_schedules_rise_to_one_and_fall(
    schedule: ScheduleSpec, steps: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    curve = [factor(schedule, step, steps, warmup) for step in range(steps)]
    assert curve[warmup] == 1
    rising, falling = curve[: warmup + 1], curve[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


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
