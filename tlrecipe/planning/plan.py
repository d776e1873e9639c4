"""The plan: a recipe in which every name and number is resolved. Plain values that can be printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tlrecipe.language.diagnostics import Diagnostic
from tlrecipe.language.spec import Augment, LossSpec, OptimizerSpec, ScheduleSpec, StopRule
from tlrecipe.planning.facts import Preprocessing
from tlrecipe.planning.schedules import factor


@dataclass(frozen=True)
class ParamGroup:
    """Parameters of one phase that share a rate and a decay: one group of the phase's optimizer."""

    name: str
    """Name of the recipe's group that the parameters belong to."""
    params: tuple[str, ...]
    lr: float
    """Base rate: what the schedule's factor is multiplied with."""
    weight_decay: float


@dataclass(frozen=True)
class Match:
    """What one pattern became."""

    where: str
    """The key that holds the pattern, such as ``freeze`` or ``group.head.match``."""
    pattern: str
    matched: int
    """Parameters that match."""
    taken: int
    """Parameters that the pattern decides about: fewer than ``matched`` where an earlier group has some."""
    first: str
    last: str


@dataclass(frozen=True)
class PhasePlan:
    """One phase. A pure function of the recipe, the parameter table and the data facts."""

    name: str
    index: int
    steps: int
    """Optimizer steps of the whole phase."""
    steps_per_epoch: int
    batch_size: int
    size: int
    groups: tuple[ParamGroup, ...]
    trainable: frozenset[str]
    frozen: frozenset[str]
    train_modules: frozenset[str]
    """Modules in train mode; all others are in eval mode."""
    moving_buffers: frozenset[str]
    """Running statistics of norm layers in train mode: the only buffers that may change."""
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    warmup_steps: int
    augment: Augment
    norm: str
    stop: StopRule | None
    best_metric: str
    """What makes an epoch the best one."""
    start_from: str
    loss: LossSpec
    class_weights: tuple[float, ...] | None
    """Weight of each class in the loss; their mean over the training images is 1."""
    sampling: Literal["once", "balanced"]
    label_smoothing: float
    clip_norm: float | None
    accumulate: int
    ema: float | None
    l2_sp: float | None
    wise_ft: float | None
    trainable_count: int
    """Trainable scalar values."""
    frozen_count: int
    matches: tuple[Match, ...]

    @property
    def epochs(self) -> float:
        return self.steps / self.steps_per_epoch

    def rates(self, step: int) -> tuple[float, ...]:
        """Learning rate of each group at optimizer step ``step`` (0-based)."""
        scale = factor(self.schedule, step, self.steps, self.warmup_steps)
        return tuple(group.lr * scale for group in self.groups)


@dataclass(frozen=True)
class Plan:
    """Everything that a run does, before it does it."""

    name: str
    seed: int
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    preprocessing: Preprocessing
    """At the last phase's size: what evaluation, the bundle and prediction use."""
    phases: tuple[PhasePlan, ...]
    group_params: Mapping[str, tuple[str, ...]]
    """The static partition: group name to parameter names, in the recipe's order."""
    final_weights: str
    precision: str
    features: str
    test_flip: bool = False
    threads: int | None = None
    warnings: tuple[Diagnostic, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``plan.json``; sets are sorted."""
        result: dict[str, Any] = _plain(self)
        return result


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, (frozenset, set)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
