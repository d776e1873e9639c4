"""Predictions as rows, and as CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tlrecipe import files
from tlrecipe.data.folders import is_text, passed_over
from tlrecipe.language.diagnostics import TlrecipeError

_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Prediction:
    """What a model says about one file."""

    file: str
    label: str | None
    """The most probable class; None for a file that cannot be used."""
    probability: float | None
    error: str | None
    """Why the file cannot be used."""
    top: tuple[tuple[str, float], ...] = ()
    """The most probable classes and their probabilities, best first; begins with ``label``."""


def inputs(paths: Iterable[Path]) -> list[Path]:
    """Files as they are given; each folder replaced by the files below it, in order of their paths.

    Hidden files and what its ending calls text or data are passed over in folders, as they are in
    training; links to folders are not followed. Raises TLR401 for a folder that cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        found += sorted(_below(path)) if path.is_dir() else [path]
    return found


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise TlrecipeError.of("TLR401", f"`{error.filename}` cannot be read: {error.strerror}") from error

    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not passed_over(name)]
        for name in names:
            if not passed_over(name) and not is_text(name):
                yield Path(here, name)


def write_predictions(rows: Iterable[Prediction], out: Path | None, top: int = 1) -> None:
    """Write rows to ``out`` as they come, or to stdout.

    JSON lines where the name ends in ``.jsonl``, ``.ndjson`` or ``.json``; else CSV with the columns
    ``file,label,probability,error``, and ``label_2,probability_2…`` for ``top`` above 1. The file appears
    when it is complete. Raises TLR901.
    """
    if out is None:
        sys.stdout.writelines(_csv(rows, top))
        return
    lines = _json(rows) if out.suffix.lower() in _JSON_ENDINGS else _csv(rows, top)
    # A file name may hold bytes that are not UTF-8; the file must not.
    files.write_atomic(out, (line.encode("utf-8", "backslashreplace") for line in lines))


def _csv(rows: Iterable[Prediction], top: int) -> Iterator[str]:
    more = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("label", "probability")]
    yield _csv_line(["file", "label", "probability", "error", *more])
    for row in rows:
        ranks = [text for label, p in row.top[1:top] for text in (label, _number(p))]
        ranks += [""] * (len(more) - len(ranks))
        yield _csv_line([row.file, row.label or "", _number(row.probability), row.error or "", *ranks])


def _csv_line(fields: list[str]) -> str:
    # Written with CRLF, because the writer quotes only those line ends that its own could be taken for.
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(fields)
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _number(probability: float | None) -> str:
    return "" if probability is None else f"{probability:.6f}"


def _json(rows: Iterable[Prediction]) -> Iterator[str]:
    for row in rows:
        value: dict[str, object] = {"file": row.file, "label": row.label}
        value |= {"probability": row.probability, "error": row.error}
        if len(row.top) > 1:
            value["top"] = [{"label": label, "probability": p} for label, p in row.top]
        yield json.dumps(value) + "\n"
