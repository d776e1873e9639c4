"""A run as the report sees it: plain values, read from the run directory alone.

Everything in it is in the directory, the images that are shown included, so that a report can be made again
wherever the directory is copied.
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tlrecipe import files
from tlrecipe.artifacts.report.findings import Predictions
from tlrecipe.artifacts.report.thumbnails import THUMBNAILS
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import ScheduleSpec
from tlrecipe.planning.schedules import factor

PREDICTIONS = "predictions.csv"
EVALUATION = "evaluation.json"
DATA = "data.json"

_MAX_BYTES = 1 << 28
_Kind = TypeVar("_Kind", bound=BaseModel)


class _Part(BaseModel):
    """A part of a file of the run directory; keys that a report does not need are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Prefix(_Part):
    """What a phase computed once."""

    mode: str
    reason: str
    cut: tuple[str, ...] = ()
    views: int = 0
    feature_bytes: int = 0
    prefix_seconds: float = 0.0
    images_computed: int = 0


class Best(_Part):
    """The best epoch of a phase on the validation split."""

    epoch: int
    metric: str
    value: float


class PhaseDone(_Part):
    """A phase in ``result.json``."""

    name: str
    steps: int
    epochs: float
    seconds: float
    trainable_params: int
    frozen_params: int
    frozen_sha256: dict[str, str]
    prefix: Prefix
    best: Best | None


class Result(_Part):
    """``result.json``."""

    status: str
    recipe: str
    recipe_sha256: str
    metrics: dict[str, dict[str, Any]] = {}
    phases: tuple[PhaseDone, ...] = ()
    seconds: dict[str, float] = {}
    weights: str = "raw"
    precision: str = "fp32"
    peak_memory_bytes: int = 0


class ClassScores(_Part):
    """A class in ``evaluation.json``."""

    precision: float | None
    f1: float | None
    auroc: float | None


class Bin(_Part):
    """Images by the confidence of their prediction; bins without images are left out."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class Evaluated(_Part):
    """``evaluation.json``: the finished model on the test split, or on validation where there is no other."""

    split: str
    metrics: dict[str, Any]
    intervals: dict[str, tuple[float, float]]
    per_class: tuple[ClassScores, ...]
    calibration: tuple[Bin, ...]


class RateGroup(_Part):
    """A group of a phase's optimizer in ``plan.json``."""

    name: str
    lr: float
    weight_decay: float


class PhasePlanned(_Part):
    """A phase in ``plan.json``."""

    name: str
    steps: int
    steps_per_epoch: int
    batch_size: int
    size: int
    groups: tuple[RateGroup, ...]
    trainable: frozenset[str]
    frozen: frozenset[str]
    optimizer: dict[str, Any]
    schedule: ScheduleSpec
    warmup_steps: int
    augment: dict[str, Any]
    norm: str
    accumulate: int
    trainable_count: int
    frozen_count: int

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate by recipe group at ``step``: the highest, where layer decay gives a group several."""
        scale = factor(self.schedule, step, self.steps, self.warmup_steps)
        rates: dict[str, float] = {}
        for group in self.groups:
            rates[group.name] = max(group.lr * scale, rates.get(group.name, 0.0))
        return rates


class Planned(_Part):
    """``plan.json``."""

    name: str
    seed: int
    classes: tuple[str, ...]
    counts: dict[str, int]
    preprocessing: dict[str, Any]
    phases: tuple[PhasePlanned, ...]
    group_params: dict[str, tuple[str, ...]]
    final_weights: str


class Epoch(_Part):
    """A row of ``metrics.jsonl`` for an epoch."""

    phase: str
    epoch: int
    step: int
    train: dict[str, float]
    val: dict[str, float] | None
    seconds: float


_Size = tuple[int, int] | None


class CardSplit(_Part):
    """A split in ``data.json``."""

    images: int
    by_class: dict[str, int]
    formats: dict[str, int]
    traits: dict[str, int]
    smallest: _Size
    median: _Size
    largest: _Size
    bad: tuple[tuple[str, str], ...]
    changed: tuple[str, ...]


class CardTwice(_Part):
    """Images in two splits in ``data.json``."""

    split: str
    also_in: str
    count: int
    examples: tuple[tuple[str, str], ...]


class Card(_Part):
    """``data.json``, the card of the data, as :class:`tlrecipe.data.card.DataCard` explains it."""

    imbalance: float
    splits: dict[str, CardSplit]
    duplicates: tuple[CardTwice, ...]
    ignored: dict[str, int]


@dataclass(frozen=True)
class Record:
    """One run. Values that its directory does not hold are None or empty."""

    path: Path
    plan: Planned
    result: Result | None
    """None where the run has not come to an end."""
    environment: Mapping[str, Any]
    recipe_text: str
    recipe: Mapping[str, Any]
    """The resolved recipe as plain TOML values."""
    epochs: tuple[Epoch, ...]
    card: Card | None
    evaluation: Evaluated | None
    predictions: Predictions | None
    """Of the split that was evaluated."""
    thumbnails: Mapping[str, str]
    """Images as data URLs, by their number among the predictions."""
    origin: str | None
    """Where the weights that training started from came from."""
    license: str | None
    """Licence of those weights."""

    @property
    def complete(self) -> bool:
        return self.result is not None and self.result.status == "complete"


def read_record(path: Path) -> Record:
    """Read the run directory ``path``. Raises TLR601 where it is none, or a file in it is damaged."""
    if not (path / "plan.json").is_file():
        raise TlrecipeError.of("TLR601", f"`{path}` is not a run directory: it holds no plan.json")
    plan = _read(path / "plan.json", Planned)
    text, recipe = _recipe(path / "recipe.resolved.toml")
    bundle = _json(path / "model" / "bundle.json") or {}
    return Record(
        path=path,
        plan=plan,
        result=_read(path / "result.json", Result) if (path / "result.json").is_file() else None,
        environment=_json(path / "environment.json") or {},
        recipe_text=text,
        recipe=recipe,
        epochs=_epochs(path / "metrics.jsonl"),
        card=_read(path / DATA, Card) if (path / DATA).is_file() else None,
        evaluation=_read(path / EVALUATION, Evaluated) if (path / EVALUATION).is_file() else None,
        predictions=_predictions(path / PREDICTIONS, plan.classes),
        thumbnails=_json(path / THUMBNAILS) or {},
        origin=bundle.get("origin"),
        license=bundle.get("license"),
    )


def planned(plan: Mapping[str, Any]) -> Planned:
    """The plan of :meth:`tlrecipe.planning.plan.Plan.as_dict`, before there is a run directory."""
    return Planned.model_validate(plan)


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    content = files.read(path, code="TLR601", limit=_MAX_BYTES)
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: ValidationError) -> TlrecipeError:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    reason = first["msg"][:1].lower() + first["msg"][1:]
    return TlrecipeError.of("TLR601", f"`{path}` is damaged: {f'`{where}`: ' if where else ''}{reason}")


def _json(path: Path) -> dict[str, Any] | None:
    """An object of a JSON file, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(files.read(path, code="TLR601", limit=_MAX_BYTES))
    except ValueError as error:
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: {error}") from error
    if not isinstance(value, dict):
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: it holds no object")
    return value


def _recipe(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = files.read(path, code="TLR601", limit=_MAX_BYTES).decode()
        return text, tomllib.loads(text)
    except ValueError as error:
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: {error}") from error


def _epochs(path: Path) -> tuple[Epoch, ...]:
    if not path.is_file():
        return ()
    rows = []
    for line in files.read(path, code="TLR601", limit=_MAX_BYTES).splitlines():
        try:
            if b'"epoch"' in line:
                rows.append(Epoch.model_validate_json(line))
        except ValidationError as error:
            raise _damaged(path, error) from error
    return tuple(rows)


def _predictions(path: Path, classes: Sequence[str]) -> Predictions | None:
    if not path.is_file():
        return None
    # A name may hold bytes that are no text; they are not needed, and the rest of it is.
    text = files.read(path, code="TLR601", limit=_MAX_BYTES).decode(errors="replace")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        found = Predictions.of(
            classes,
            [row["file"] for row in rows],
            [(row["label"], row["predicted"], float(row["probability"])) for row in rows],
        )
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: {error!r}") from error
    return found if len(found) else None
