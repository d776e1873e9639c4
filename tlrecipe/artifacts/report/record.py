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
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from tlrecipe import files
from tlrecipe.artifacts.predictions import cell_of
from tlrecipe.artifacts.report.findings import Predictions
from tlrecipe.artifacts.report.thumbnails import THUMBNAILS
from tlrecipe.artifacts.rundir import refuse_special
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import ScheduleSpec
from tlrecipe.planning.facts import CropMode
from tlrecipe.planning.schedules import factor

PREDICTIONS = "predictions.csv"
EVALUATION = "evaluation.json"
BUNDLE = "model/bundle.json"
DATA = "data.json"

_MAX_BYTES = 1 << 28
_DEPTH = 12
_Kind = TypeVar("_Kind", bound=BaseModel)
_Value = TypeVar("_Value")


# A run directory may come from a stranger: numbers beyond these bounds could not be drawn or counted.
Count = Annotated[int, Field(ge=0, le=10**15)]
Steps = Annotated[int, Field(ge=1, le=10**15)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Positive = Annotated[float, Field(ge=0, le=1e30)]
Plain = str | bool | int | float | None
DataUrl = Annotated[str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/=]*$")]


class _Part(BaseModel):
    """A part of a file of the run directory; keys that a report does not need are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Measured(_Part):
    """What the metrics of a split hold at least."""

    accuracy: Share
    loss: Number
    count: Count | None = None


def _measured(metrics: dict[str, Any]) -> dict[str, Any]:
    _Measured.model_validate(metrics)
    return metrics


Metrics = Annotated[dict[str, Number | str], AfterValidator(_measured)]


class Prefix(_Part):
    """What a phase computed once."""

    mode: str
    reason: str
    cut: tuple[str, ...] = ()
    views: Count = 0
    feature_bytes: Count = 0
    prefix_seconds: Positive = 0.0
    images_computed: Count = 0


class Best(_Part):
    """The best epoch of a phase on the validation split."""

    epoch: Count
    metric: str
    value: Number


class PhaseDone(_Part):
    """A phase in ``result.json``."""

    name: str
    steps: Count
    epochs: Annotated[float, Field(ge=0, le=1e12)]
    seconds: Positive
    trainable_params: Count
    frozen_params: Count
    frozen_sha256: dict[str, str]
    prefix: Prefix
    best: Best | None


class Result(_Part):
    """``result.json``."""

    status: str
    recipe: str
    recipe_sha256: str
    metrics: dict[str, Metrics] = {}
    phases: tuple[PhaseDone, ...] = ()
    seconds: dict[str, Positive] = {}
    weights: str = "raw"
    precision: str = "fp32"
    peak_memory_bytes: Count = 0


class ClassScores(_Part):
    """A class in ``evaluation.json``."""

    precision: Share | None
    f1: Share | None
    auroc: Share | None


class Bin(_Part):
    """Images by the confidence of their prediction; bins without images are left out."""

    low: Share
    high: Share
    count: Steps
    confidence: Share
    accuracy: Share


class Evaluated(_Part):
    """``evaluation.json``: the finished model on the test split, or on validation where there is no other."""

    split: str
    metrics: Metrics
    intervals: dict[str, tuple[Number, Number]]
    per_class: tuple[ClassScores, ...]
    calibration: tuple[Bin, ...]


class RateGroup(_Part):
    """A group of a phase's optimizer in ``plan.json``."""

    name: str
    lr: Annotated[float, Field(ge=0, le=1e12)]
    weight_decay: Positive


class Optimizer(_Part):
    """An optimizer in ``plan.json``; its settings are in the recipe."""

    name: str


class PhasePlanned(_Part):
    """A phase in ``plan.json``."""

    name: str
    steps: Steps
    steps_per_epoch: Steps
    batch_size: Steps
    size: Steps
    groups: Annotated[tuple[RateGroup, ...], Field(min_length=1)]
    trainable: frozenset[str]
    frozen: frozenset[str]
    optimizer: Optimizer
    schedule: ScheduleSpec
    warmup_steps: Count
    norm: str
    accumulate: Steps
    trainable_count: Count
    frozen_count: Count

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate by recipe group at ``step``: the highest, where layer decay gives a group several."""
        scale = factor(self.schedule, step, self.steps, self.warmup_steps)
        rates: dict[str, float] = {}
        for group in self.groups:
            rates[group.name] = max(group.lr * scale, rates.get(group.name, 0.0))
        return rates


class Prepared(_Part):
    """``preprocessing`` in ``plan.json``."""

    size: Steps
    crop_pct: Annotated[float, Field(gt=1e-6, le=2)]
    crop_mode: CropMode = "center"
    interpolation: str
    mean: tuple[Number, ...]
    std: tuple[Number, ...]


class Environment(_Part):
    """``environment.json``; more facts may be there."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]

    packages: dict[str, str | None] = {}


class Origin(_Part):
    """Where weights came from, in the bundle's record."""

    origin: str | None = None
    license: str | None = None


class Source(_Part):
    """``[data]`` or ``[backbone]`` of a resolved recipe."""

    source: str
    name: str = ""
    path: str = ""
    weights: str = ""


class Shape(_Part):
    """What a report takes out of a resolved recipe, which it otherwise shows as it is."""

    description: str = ""
    backbone: Source
    data: Source
    phase: tuple[dict[str, Any], ...] = ()


class Planned(_Part):
    """``plan.json``."""

    name: str
    seed: int
    classes: tuple[str, ...]
    counts: dict[str, Count]
    preprocessing: Prepared
    phases: Annotated[tuple[PhasePlanned, ...], Field(min_length=1)]
    group_params: dict[str, tuple[str, ...]]
    final_weights: str

    @model_validator(mode="after")
    def _groups_are_there(self) -> Self:
        if unknown := {group.name for phase in self.phases for group in phase.groups} - set(
            self.group_params
        ):
            raise ValueError(f"group {min(unknown)!r} has no parameters")
        return self


class Epoch(_Part):
    """A row of ``metrics.jsonl`` for an epoch."""

    phase: str
    epoch: Count
    step: Count
    train: dict[str, Number]
    val: dict[str, Number] | None
    seconds: Positive


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


class CardTorn(_Part):
    """Images in two classes of a split in ``data.json``."""

    split: str
    count: int
    examples: tuple[tuple[str, str], ...]


class Card(_Part):
    """``data.json``, the card of the data, as :class:`tlrecipe.data.card.DataCard` explains it."""

    imbalance: float
    splits: dict[str, CardSplit]
    duplicates: tuple[CardTwice, ...]
    in_two_classes: tuple[CardTorn, ...] = ()
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
    for folder in (path, path / "plots", path / "model"):
        if folder.is_dir():
            refuse_special(folder)
    if not (path / "plan.json").is_file():
        raise TlrecipeError.of("TLR601", f"`{path}` is not a run directory: it holds no plan.json")
    plan = _read(path / "plan.json", Planned)
    text, recipe = _recipe(path / "recipe.resolved.toml")
    environment = _json(path / "environment.json") or {}
    thumbnails = _json(path / THUMBNAILS) or {}
    _checked(path / "environment.json", Environment, environment)
    _checked(path / THUMBNAILS, dict[str, DataUrl], thumbnails)
    origin = _checked(path / BUNDLE, Origin, _json(path / BUNDLE) or {})
    evaluation = _read(path / EVALUATION, Evaluated) if (path / EVALUATION).is_file() else None
    if evaluation is not None and len(evaluation.per_class) != len(plan.classes):
        raise TlrecipeError.of(
            "TLR601", f"`{path / EVALUATION}` is damaged: its classes are not those of the plan"
        )
    return Record(
        path=path,
        plan=plan,
        result=_read(path / "result.json", Result) if (path / "result.json").is_file() else None,
        environment=environment,
        recipe_text=text,
        recipe=recipe,
        epochs=_epochs(path / "metrics.jsonl"),
        card=_read(path / DATA, Card) if (path / DATA).is_file() else None,
        evaluation=evaluation,
        predictions=_predictions(path / PREDICTIONS, plan.classes),
        thumbnails=thumbnails,
        origin=origin.origin,
        license=origin.license,
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


def _checked(path: Path, kind: type[_Value], value: Any) -> _Value:
    try:
        found: _Value = TypeAdapter(kind).validate_python(value)
        return found
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
    except (ValueError, RecursionError) as error:
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: {error}") from error
    if not isinstance(value, dict):
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: it holds no object")
    return value


def _recipe(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = files.read(path, code="TLR601", limit=_MAX_BYTES).decode()
        recipe = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: {error}") from error
    _checked(path, Shape, recipe)
    if not _is_shallow(recipe, _DEPTH):
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: its tables are too deep")
    return text, recipe


def _is_shallow(value: Any, limit: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return limit > 0 and all(_is_shallow(item, limit - 1) for item in inner)


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
            [cell_of(row["file"]) for row in rows],
            [(cell_of(row["label"]), cell_of(row["predicted"]), float(row["probability"])) for row in rows],
        )
        if None in found.files or not ((found.probability >= 0) & (found.probability <= 1)).all():
            raise ValueError("a row lacks its file, or a probability is none")
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise TlrecipeError.of("TLR601", f"`{path}` is damaged: {error!r}") from error
    return found if len(found) else None
