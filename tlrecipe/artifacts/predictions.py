"""Predictions as rows, and as CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tlrecipe import files
from tlrecipe.data.folders import is_text, passed_over
from tlrecipe.language.diagnostics import TlrecipeError

_JSON_ENDINGS = (".jsonl", ".ndjson", ".json")

# https://owasp.org/www-community/attacks/CSV_Injection; the full-width forms are taken for the others in East
# Asian settings. With one apostrophe more where there are some already, the text can be told from its cell.
_FORMULA = re.compile("'*[=+\\-@\t\r＝＋－＠]")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


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
    training; links to folders are not followed. Raises TLR401 for a folder that cannot be read, and for
    links in it that lead out of it; files that are named one by one may be links.
    """
    found: list[Path] = []
    for path in paths:
        found += sorted(_below(path)) if path.is_dir() else [path]
    return found


def _below(folder: Path) -> Iterator[Path]:
    root = folder.resolve()

    def refuse(error: OSError) -> None:
        raise TlrecipeError.of("TLR401", f"`{error.filename}` cannot be read: {error.strerror}") from error

    for here, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not passed_over(name)]
        for name in names:
            if passed_over(name) or is_text(name):
                continue
            path = Path(here, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                raise TlrecipeError.of(
                    "TLR401",
                    f"`{path}` is a link out of the folder",
                    help="name the files one by one to have their links followed",
                )
            yield path


def write_predictions(rows: Iterable[Prediction], out: Path, top: int = 1) -> None:
    """Write rows to ``out`` as they come; the file appears when it is complete.

    JSON lines where the name ends in ``.jsonl``, ``.ndjson`` or ``.json``; else :func:`csv_lines`.
    Raises TLR901.
    """
    _write_lines(_json(rows) if out.suffix.lower() in _JSON_ENDINGS else csv_lines(rows, top), out)


def write_evaluated(names: Iterable[str], rows: Iterable[tuple[str, str, float]], out: Path) -> None:
    """Write labelled images and what a model says about them as CSV, with the columns
    ``file,label,predicted,probability``: true class, most probable class and its probability. The file
    appears when it is complete. Raises TLR901."""

    def lines() -> Iterator[str]:
        yield _csv_line(["file", "label", "predicted", "probability"])
        for name, (label, predicted, probability) in zip(names, rows, strict=True):
            yield _csv_line([name, label, predicted, _number(probability)])

    _write_lines(lines(), out)


def _write_lines(lines: Iterable[str], out: Path) -> None:
    # A file name may hold bytes that are not UTF-8; the file must not.
    files.write_atomic(out, (line.encode("utf-8", "backslashreplace") for line in lines))


def csv_lines(rows: Iterable[Prediction], top: int = 1) -> Iterator[str]:
    """CSV with the columns ``file,label,probability,error``, and ``label_2,probability_2…`` for ``top`` above
    1. A spreadsheet would carry out a cell that begins like a formula: such a cell has ``'`` in front."""
    more = [f"{column}_{rank}" for rank in range(2, top + 1) for column in ("label", "probability")]
    yield _csv_line(["file", "label", "probability", "error", *more])
    for row in rows:
        ranks = [text for label, p in row.top[1:top] for text in (label, _number(p))]
        ranks += [""] * (len(more) - len(ranks))
        yield _csv_line([row.file, row.label or "", _number(row.probability), row.error or "", *ranks])


def _csv_line(fields: list[str]) -> str:
    # Written with CRLF, because the writer quotes only those line ends that its own could be taken for.
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(map(_inert, fields))
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _inert(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def cell_of(written: str) -> str:
    """The text that a cell of a CSV file was made of."""
    return written[1:] if written.startswith("'") and _inert(written[1:]) == written else written


def _number(probability: float | None) -> str:
    return "" if probability is None else f"{probability:.6f}"


def _json(rows: Iterable[Prediction]) -> Iterator[str]:
    for row in rows:
        value: dict[str, object] = {"file": row.file, "label": row.label}
        value |= {"probability": row.probability, "error": row.error}
        if len(row.top) > 1:
            value["top"] = [{"label": label, "probability": p} for label, p in row.top]
        yield json.dumps(value) + "\n"
