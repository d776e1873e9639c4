"""Learning-rate schedules as pure functions of the step.

A schedule is a factor of each group's own base rate, so floors and peaks are relative and no schedule
can flatten the ratios between groups.
"""

from __future__ import annotations

from math import cos, pi

from tlrecipe.language.spec import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    OneCycleSchedule,
    ScheduleSpec,
    StepSchedule,
)


def warmup_steps(schedule: ScheduleSpec, steps: int) -> int:
    """Warm-up in steps: whole numbers are steps, fractions are of the phase (rounded, halves to even)."""
    warmup = schedule.warmup
    return warmup if isinstance(warmup, int) else round(warmup * steps)


def factor(schedule: ScheduleSpec, step: int, steps: int, warmup: int) -> float:
    """Factor of the base rate at ``step`` (0-based) of ``steps``, after ``warmup`` rising steps.

    Warm-up rises linearly as ``(step + 1) / (warmup + 1)`` and reaches 1 at ``step == warmup``; the
    descent ends so that the last step has almost, and the step after it exactly, the final factor.
    """
    if isinstance(schedule, OneCycleSchedule):
        if step < warmup:
            return _cosine(schedule.start, 1.0, step / warmup)
        return _cosine(1.0, schedule.final, (step - warmup) / max(1, steps - warmup))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    match schedule:
        case ConstantSchedule():
            return 1.0
        case LinearSchedule():
            return 1.0 + (schedule.final - 1.0) * progress
        case CosineSchedule():
            return _cosine(1.0, schedule.final, progress)
        case StepSchedule():
            passed = sum(step / steps >= milestone for milestone in schedule.milestones)
            return schedule.factor**passed


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + cos(pi * min(1.0, progress))) / 2
