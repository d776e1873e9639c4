"""Runs side by side: what differs between their recipes, what they reached, and how sure that is."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tlrecipe.artifacts.report import charts, text
from tlrecipe.artifacts.report.charts import Curve
from tlrecipe.artifacts.report.findings import Paired, paired
from tlrecipe.artifacts.report.page import MEASURES, Measure, metric_rows, render, thinned, training_path
from tlrecipe.artifacts.report.record import Record
from tlrecipe.artifacts.report.shapes import Figure
from tlrecipe.planning.intervals import wilson_interval

_HALF = 400.0
# What a recipe calls itself does not change what it does.
_NOT_COMPARED = ("name", "description")
ABSENT = "–"
"""Stands for a key that a recipe does not have."""


@dataclass(frozen=True)
class Entry:
    """One of the runs that are compared."""

    letter: str
    record: Record

    @property
    def split(self) -> str | None:
        """The split on which the finished model was measured."""
        metrics = self.record.result.metrics if self.record.result else {}
        return next((name for name in ("test", "val") if name in metrics), None)

    @property
    def metrics(self) -> Mapping[str, Any]:
        result = self.record.result
        return {} if result is None or self.split is None else result.metrics[self.split]

    @property
    def accuracy(self) -> float | None:
        return self.metrics.get("accuracy")

    @property
    def images(self) -> int:
        return int(self.metrics.get("count") or self.record.plan.counts.get(self.split or "", 0))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the accuracy."""
        return (
            None if self.accuracy is None or not self.images else wilson_interval(self.accuracy, self.images)
        )

    @property
    def seconds(self) -> float | None:
        return self.record.result.seconds.get("total") if self.record.result else None

    @cached_property
    def values(self) -> dict[str, str]:
        """The resolved recipe by dotted key."""
        return dict(_flat(self.record.recipe))


@dataclass(frozen=True)
class Difference:
    """A key of the recipes, with its value in each run."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Duel:
    """A run against the first one, on the same images."""

    first: str
    second: str
    found: Paired


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, the first of them the one that the others are measured by."""

    entries: tuple[Entry, ...]
    differences: tuple[Difference, ...]
    duels: tuple[Duel, ...]
    not_paired: tuple[str, ...]
    """Letters of the runs that were not measured on the images of the first."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "runs": [
                {
                    "letter": entry.letter,
                    "run_dir": str(entry.record.path),
                    "recipe": entry.record.plan.name,
                    "status": entry.record.result.status if entry.record.result else "unfinished",
                    "split": entry.split,
                    "metrics": dict(entry.metrics),
                    "accuracy_interval": entry.interval,
                    "seconds": entry.seconds,
                }
                for entry in self.entries
            ],
            "differences": [
                {
                    "key": difference.key,
                    "values": [None if value == ABSENT else value for value in difference.values],
                }
                for difference in self.differences
            ],
            "paired": [{"first": d.first, "second": d.second, **asdict(d.found)} for d in self.duels],
        }


def compare(records: Sequence[Record]) -> Comparison:
    """Compare runs by their directories. Each gets a letter, in the order given."""
    entries = tuple(Entry(_letter(index), record) for index, record in enumerate(records))
    duels, alone = [], []
    for entry in entries[1:]:
        found = _duel(entries[0].record, entry.record)
        if found is None:
            alone.append(entry.letter)
        else:
            duels.append(Duel(entries[0].letter, entry.letter, found))
    return Comparison(entries, tuple(_differences(entries)), tuple(duels), tuple(alone))


def _letter(index: int) -> str:
    more, last = divmod(index, 26)
    return (string.ascii_uppercase[more - 1] if more else "") + string.ascii_uppercase[last]


def _duel(first: Record, second: Record) -> Paired | None:
    """Both models on the images that both were measured on: None unless files and classes are the same."""
    one, two = first.predictions, second.predictions
    if one is None or two is None:
        return None
    order = {file: index for index, file in enumerate(two.files)}
    if len(order) != len(two) or set(order) != set(one.files) or len(one) != len(two):
        return None
    rows = np.array([order[file] for file in one.files])
    truths = [one.classes[label] for label in one.labels.tolist()]
    if truths != [two.classes[label] for label in two.labels[rows].tolist()]:
        return None
    return paired(one.right, two.right[rows])


# --------------------------------------------------------------------------- recipes


def _differences(entries: Sequence[Entry]) -> Iterator[Difference]:
    keys = dict.fromkeys(key for entry in entries for key in entry.values)
    for key in keys:
        values = tuple(entry.values.get(key, ABSENT) for entry in entries)
        if len(set(values)) > 1 and key not in _NOT_COMPARED:
            yield Difference(key, values)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and their values as TOML; phases and groups by their names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        yield path, toml([item.get("name", "") for item in value])
        for item in value:
            rest = {key: part for key, part in item.items() if key != "name"}
            yield from _flat(rest, f"{path}.{item.get('name', '')}")
    else:
        yield path, toml(value)


def toml(value: Any) -> str:
    """A value on one line of TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(toml(item) for item in value)}]"
    return str(value)


# --------------------------------------------------------------------------- the page


def comparison_page(comparison: Comparison) -> str:
    """The comparison as one HTML file, made like the report of a run."""
    entries = comparison.entries
    return render(
        "compare.html.jinja",
        {
            "title": " · ".join(dict.fromkeys(entry.record.plan.name for entry in entries)),
            "comparison": comparison,
            "entries": entries,
            "meters": [
                None if e.interval is None or e.accuracy is None else (e.accuracy, e.interval)
                for e in entries
            ],
            "roles": {entry.letter: charts.role(index) for index, entry in enumerate(entries)},
            "metrics": list(_metrics(entries)),
            "charts": [(measure.heading, _chart(entries, measure)) for measure in MEASURES],
            "absent": ABSENT,
        },
    )


def _metrics(entries: Sequence[Entry]) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Name and meaning of each metric that a run was measured by, and its value and interval in each run."""
    tables = [{row[0]: row for row in metric_rows(entry.record.evaluation)} for entry in entries]
    for name, meaning in dict.fromkeys((name, row[1]) for table in tables for name, row in table.items()):
        yield name, meaning, [table[name][2:] if name in table else (ABSENT, "") for table in tables]


def learning(entry: Entry, measure: Measure) -> list[tuple[float, float]]:
    """A measure over the epochs of a run: on the validation split, or in training where there is none."""
    rows = training_path(entry.record).rows
    validated = [(x, row.val[measure.key]) for x, row in rows if row.val and measure.key in row.val]
    return validated or [(x, row.train[measure.key]) for x, row in rows if measure.key in row.train]


def _chart(entries: Sequence[Entry], measure: Measure) -> Figure:
    lines = {entry.letter: learning(entry, measure) for entry in entries}
    curves = [
        Curve(letter, charts.role(index), [thinned(points)], thick=True)
        for index, (letter, points) in enumerate(lines.items())
        if points
    ]
    said = [
        f"{letter} from {measure.exact(points[0][1])} to {measure.exact(points[-1][1])}"
        for letter, points in lines.items()
        if points
    ]
    return charts.curves(
        curves,
        title=f"{measure.heading} of the runs over their epochs",
        description="; ".join(said) or "nothing was recorded",
        width=_HALF,
        number=measure.axis,
        x_name="epochs",
        limits=measure.limits,
    )


def verdict(duel: Duel) -> str:
    """A duel in words."""
    found = duel.found
    low, high = found.difference_interval
    return (
        f"{duel.second} against {duel.first} on the same {found.images:,} images:"
        f" {text.points(found.difference)} points (95 % interval {text.points(low)} to {text.points(high)});"
        f" only {duel.second} is right on {found.only_second}, only {duel.first} on {found.only_first},"
        f" McNemar p = {found.p_value:.2g}"
    )
