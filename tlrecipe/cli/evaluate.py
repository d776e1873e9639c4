"""`tlrecipe evaluate`: metrics of a trained model on labelled images, from its bundle alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlrecipe.cli import console
from tlrecipe.cli.device import pick_device
from tlrecipe.cli.progress import progress
from tlrecipe.cli.render import printable

_CLASSES = 20


def evaluate(
    path: Path,
    data: Path | None,
    *,
    out: Path | None,
    device: str,
    plain: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Print all metrics on the test split, or on the validation split where there is no other.

    ``data`` is a folder or zip of images, or a recipe whose data is meant; by default the data that the
    model was trained with. A folder without split folders is evaluated whole. ``out`` gets a row per image.
    """
    from tlrecipe.artifacts.bundle import Model, find_bundle
    from tlrecipe.cli.run import accuracy_line
    from tlrecipe.workflow.evaluating import evaluate

    folder = find_bundle(path)
    model = Model.load(folder, pick_device(device))
    with progress(plain=plain, quiet=quiet) as show:
        measured = evaluate(model, data, on_event=show, predictions=out)
    split, report = measured.split, measured.report
    if as_json:
        console.out(json.dumps({"model": str(folder), **report}, indent=2))
        return
    console.out(accuracy_line(split, measured.metrics))
    for line in (*_metric_lines(split, report), *_class_lines(report["per_class"])):
        console.out(line)


def _metric_lines(split: str, report: Mapping[str, Any]) -> Iterator[str]:
    for name, value in report["metrics"].items():
        if name in report["intervals"] and name != "accuracy":
            low, high = report["intervals"][name]
            yield f"{split} {name.replace('_', ' ')} {value:.4f} ({low:.4f} to {high:.4f})"


def _class_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The classes that are recognised worst, worst first."""
    known = sorted((row for row in rows if row["support"]), key=lambda row: row["recall"])
    if len(known) > _CLASSES:
        yield f"the {_CLASSES} classes with the lowest recall of {len(known)}:"
    shown = [(printable(row["class"]), row) for row in known[:_CLASSES]]
    width = max(5, *(len(name) for name, _ in shown))
    yield f"{'class':<{width}}  images  precision  recall     f1"
    for name, row in shown:
        # A class that is never predicted has no precision.
        precision = "–" if row["precision"] is None else f"{row['precision']:.3f}"
        yield f"{name:<{width}}{row['support']:>8}{precision:>11}{row['recall']:>8.3f}{row['f1']:>7.3f}"
