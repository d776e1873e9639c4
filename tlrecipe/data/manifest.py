"""A table of images and labels: CSV, JSON lines or parquet."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tlrecipe.data.folders import SPLIT_FOLDERS
from tlrecipe.data.labelled import ONE_CLASS, labelled, several_at_once
from tlrecipe.data.listing import Found, Tree
from tlrecipe.data.reading import file_stamp, read_bytes, reason_of
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped, did_you_mean
from tlrecipe.language.spec import ManifestData

_NEEDED = ("file_name", "label")
_PLACE = ("data", "path")


def manifest_data(spec: ManifestData) -> Found:
    """The images that a table names, with its classes, splits and groups.

    Raises ``TlrecipeError`` with all mistakes at once, each with its line: TLR401 (the table cannot be
    read), TLR406 (a column or a value of a row), TLR402 and TLR403 as :func:`labelled`.
    """
    path = Path(spec.path)
    root = Path(spec.root) if spec.root is not None else path.parent
    table = _Table(path, root)
    for line, values in _rows(path):
        table.add(line, values)
    return table.found()


class _Row(NamedTuple):
    line: int
    name: str
    label: int
    split: str
    group: str | None


class _Table:
    """The rows of a manifest as they come, and what is wrong with them."""

    def __init__(self, path: Path, root: Path):
        self._path, self._root = path, root
        self._inside = _Inside(root)
        self._labels: dict[str, int] = {}
        self._rows: list[_Row] = []
        self._problems: list[Diagnostic] = []
        self._lines: dict[str, int] = {}
        self._groups: dict[str, tuple[str, int]] = {}

    def add(self, line: int, values: Mapping[str, Any]) -> None:
        """One row; its mistakes are kept until all are known."""
        before = len(self._problems)
        name = self._file_name(line, values.get("file_name"))
        label = self._text(line, "label", values.get("label"))
        split = self._split(line, values)
        group = self._text(line, "group", values["group"]) if values.get("group") not in (None, "") else None
        if len(self._problems) > before:
            return
        first = self._lines.setdefault(name, line)
        if first != line:
            earlier = next((row.label for row in self._rows if row.name == name), None)
            if earlier is None or earlier == self._labels.get(label):
                self._complain(line, f"`{name}` is in line {first} already", "an image has one row")
            else:
                message = f"`{name}` is `{label}` here and `{list(self._labels)[earlier]}` in line {first}"
                self._complain(line, message, ONE_CLASS)
        if group is not None:
            other, where = self._groups.setdefault(group, (split, line))
            if other != split:
                message = f"group `{group}` is in {split} here and in {other} in line {where}"
                self._complain(line, message, "a group belongs to one split")
        number = self._labels.setdefault(label, len(self._labels))
        self._rows.append(_Row(line, name, number, split, group))

    def found(self) -> Found:
        """All rows together. Raises what is wrong with them."""
        for label in several_at_once(self._labels):
            number = self._labels[label]
            line = next(row.line for row in self._rows if row.label == number)
            help = f"{ONE_CLASS}; if it is one class, write it in another way"
            self._complain(line, f"`label` is several classes at once: `{label}`", help)
        if self._problems:
            raise TlrecipeError(capped(self._problems))
        self._lines.clear()
        tree, row_of = Tree.of_names(row.name for row in self._rows)
        places = np.array([row_of(row.name) for row in self._rows], dtype=np.int64)
        labels = np.array([row.label for row in self._rows], dtype=np.int64)
        splits = np.array([row.split for row in self._rows])
        inside = {split: splits == split for split in ("train", "val", "test") if (splits == split).any()}
        meaning = labelled(
            tree,
            {split: places[chosen] for split, chosen in inside.items()},
            {split: labels[chosen] for split, chosen in inside.items()},
            list(self._labels),
            str(self._path),
            _PLACE,
        )
        root = self._root
        return Found(
            classes=meaning.classes,
            splits=meaning.splits,
            read=lambda item: read_bytes(root / item.name),
            origin=str(self._path),
            place=_PLACE,
            ignored={},
            warnings=meaning.warnings,
            stamp=lambda item: file_stamp(root / item.name),
            groups=self._group_of_row(places),
        )

    def _group_of_row(self, places: NDArray[np.int64]) -> NDArray[np.int64] | None:
        if not self._groups:
            return None
        # An image without a group is a group of its own.
        number = {group: place for place, group in enumerate(sorted(self._groups))}
        own = enumerate(self._rows, len(number))
        groups = np.empty(len(places), dtype=np.int64)
        groups[places] = [place if row.group is None else number[row.group] for place, row in own]
        return groups

    def _file_name(self, line: int, value: Any) -> str:
        if not isinstance(value, str) or not value:
            self._complain(line, "no `file_name`")
            return ""
        name = os.path.normpath(value).replace(os.sep, "/")
        if name.startswith(("/", "../")) or name == "..":
            help = f"file names start from `{self._root}`; set `data.root` to another folder"
            self._complain(line, f"`{value}` leads out of the data folder", help)
        elif problem := self._inside.problem(name):
            self._complain(line, f"`{value}` {problem}")
        return name

    def _text(self, line: int, column: str, value: Any) -> str:
        if isinstance(value, (list, tuple, dict)):
            self._complain(line, f"`{column}` is not one value", ONE_CLASS)
        elif isinstance(value, (bool, float)):
            self._complain(line, f"`{column}` is {value!r}", "write a text or a whole number")
        elif value is None or str(value).strip() == "":
            self._complain(line, f"no `{column}`")
        return str(value)

    def _split(self, line: int, values: Mapping[str, Any]) -> str:
        if "split" not in values:
            return "train"
        value = values["split"]
        split = SPLIT_FOLDERS.get(value.casefold()) if isinstance(value, str) else None
        if split is None:
            shown = f"`{value}` is no split" if value not in (None, "") else "no `split`"
            help = did_you_mean(str(value), list(SPLIT_FOLDERS)) or "there are train, val and test"
            self._complain(line, shown, help)
        return split or "train"

    def _complain(self, line: int, message: str, help: str | None = None) -> None:
        self._problems.append(_mistake(self._path, line, message, help))


class _Inside:
    """Says whether files are there, and below the root when links are followed."""

    def __init__(self, root: Path):
        self._root = root
        self._real_root = os.path.realpath(root)
        self._real: dict[str, str] = {}

    def problem(self, name: str) -> str | None:
        folder, base = os.path.split(name)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(self._root / folder)
        path = f"{self._real[folder]}/{base}"
        try:
            if os.path.islink(path):  # noqa: PTH114 (a hundred thousand of them)
                path = os.path.realpath(path)
            inside = os.path.commonpath([path, self._real_root]) == self._real_root
            if inside:
                os.stat(path)  # noqa: PTH116
        except (OSError, ValueError) as error:
            return f"is not there: {reason_of(error)}"
        return None if inside else "is a link out of the data folder"


def _mistake(path: Path, line: int, message: str, help: str | None = None) -> Diagnostic:
    return Diagnostic("TLR406", message, _PLACE, help, file=str(path), line=line)


# --------------------------------------------------------------------------- reading the table


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each row with its line in the file (its number, in parquet). Raises TLR401 and TLR406."""
    read = _READERS.get(path.suffix.lower())
    if read is None:
        message = f"`{path}` is not a table that is known by its ending"
        help = f"there are {', '.join(_READERS)}"
        raise TlrecipeError.of("TLR401", message, path=_PLACE, help=help)
    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"`{path}` cannot be read: {reason_of(error)}"
        raise TlrecipeError.of("TLR401", message, path=_PLACE) from error


def _csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        _check_columns(path, reader.fieldnames or ())
        before = reader.line_num
        for values in reader:
            # A quoted value may span lines: the row is where it begins.
            line, before = before + 1, reader.line_num
            if None in values or None in values.values():
                found = len([value for key, value in values.items() if key and value is not None])
                wanted = len(reader.fieldnames or ())
                found += len(values.get(None, ()))
                raise TlrecipeError([_mistake(path, line, f"{found} values for {wanted} columns")])
            yield line, values


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except ValueError as error:
                raise TlrecipeError([_mistake(path, line, f"not JSON: {error}")]) from error
            if not isinstance(values, dict):
                raise TlrecipeError([_mistake(path, line, "not a JSON object")])
            _check_one_label(path, line, values)
            yield line, values


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = "parquet is read by pyarrow, which is not installed"
        help = 'pip install "tlrecipe[parquet]"'
        raise TlrecipeError.of("TLR401", message, path=_PLACE, help=help) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names)
            columns = [name for name in ("file_name", "label", "split", "group") if name in names]
            row = 0
            for batch in file.iter_batches(columns=columns):
                for values in batch.to_pylist():
                    row += 1
                    yield row, values
    except pyarrow.ArrowException as error:
        message = f"`{path}` is not a sound parquet file: {reason_of(error)}"
        raise TlrecipeError.of("TLR401", message, path=_PLACE) from error


def _check_columns(path: Path, names: Any) -> None:
    missing = [f"`{name}`" for name in _NEEDED if name not in names]
    if missing:
        help = f"it has {', '.join(map(str, names))}" if names else "it is empty"
        if names and "label" not in names:
            help += f"; {ONE_CLASS}, which `label` names"
        raise TlrecipeError([_mistake(path, 1, f"no column {' and '.join(missing)}", help)])
    _check_one_label(path, 1, names)


def _check_one_label(path: Path, line: int, names: Iterable[str]) -> None:
    if more := [f"`{name}`" for name in names if re.fullmatch(r"label[ _-]?\d+", name)]:
        message = f"more columns of labels beside `label`: {', '.join(more)}"
        raise TlrecipeError([_mistake(path, line, message, f"{ONE_CLASS}; rename what is no label")])


_READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, Mapping[str, Any]]]]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
"""Endings of tables, and how each is read."""
