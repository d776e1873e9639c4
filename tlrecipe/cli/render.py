"""Diagnostics as people, editors and code hosts read them."""

from __future__ import annotations

import json
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from tlrecipe.language.diagnostics import Diagnostic, Label

ErrorFormat = Literal["plain", "json", "github"]

Segment = tuple[str, str]
"""Text and its rich style, which is empty for plain text."""

_COLOURS = {"error": "bold red", "warning": "bold yellow"}
_SECOND = "bold blue"
_PIPE_WIDTH = 100
_TAB = 4


def printable(text: str) -> str:
    """``text`` with everything that could act on a terminal shown as an escape: control characters, ANSI
    sequences, direction overrides, invisible characters, bytes that are not UTF-8."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def as_json(diagnostics: Iterable[Diagnostic]) -> str:
    """A JSON list of ``{file, line, column, end_column, code, severity, path, message, help, labels}``, with
    ``{file, line, column, end_column, message}`` for each further place."""
    return json.dumps(
        [
            {
                **_span_as_json(d),
                "code": d.code,
                "severity": d.severity,
                "path": list(d.path),
                "message": d.message,
                "help": d.help,
                "labels": [{**_span_as_json(label), "message": label.text} for label in d.labels],
            }
            for d in diagnostics
        ],
        indent=2,
    )


def _span_as_json(d: Diagnostic | Label) -> dict[str, str | int | None]:
    return {"file": d.file, "line": d.line, "column": d.column, "end_column": d.end_column}


def as_github(diagnostics: Iterable[Diagnostic]) -> str:
    """Workflow commands, which GitHub shows as annotations at the line."""
    return "\n".join(_github_command(d) for d in diagnostics)


def _github_command(d: Diagnostic) -> str:
    places = {"file": d.file, "line": d.line, "col": d.column, "endColumn": d.end_column, "title": d.code}
    known = {name: printable(str(value)) for name, value in places.items() if value is not None}
    properties = ",".join(f"{name}={_github_escape(value, ':,')}" for name, value in known.items())
    text = d.message if d.help is None else f"{d.message}\nhelp: {d.help}"
    shown = "\n".join(printable(line) for line in text.split("\n"))
    return f"::{d.severity} {properties}::{_github_escape(shown)}"


def _github_escape(text: str, more: str = "") -> str:
    for char in f"%\r\n{more}":
        text = text.replace(char, f"%{ord(char):02X}")
    return text


# --------------------------------------------------------------------------- plain text


def as_text(diagnostics: Sequence[Diagnostic], width: int | None = None) -> list[Segment]:
    """Diagnostics one after the other, and how many there are.

    ``width`` is that of the terminal in columns. Without one nothing is wrapped, so that a tool can read
    a diagnostic's first line whole; source lines are always cut to fit.
    """
    segments: list[Segment] = []
    for d in diagnostics:
        segments += _diagnostic(d, width)
        segments.append(("\n", ""))
    return [*segments, (f"{_count(diagnostics)}\n", "bold")]


def _count(diagnostics: Sequence[Diagnostic]) -> str:
    counts = [(kind, sum(d.severity == kind for d in diagnostics)) for kind in ("error", "warning")]
    return ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts if count)


def _diagnostic(d: Diagnostic, width: int | None) -> Iterator[Segment]:
    colour = _COLOURS[d.severity]
    place = _place(d)
    head = f"{place}{d.severity}[{d.code}]: "
    lines = _wrapped(head + _message(d.message), width, "  ")
    yield lines[0][: len(place)], "bold"
    yield lines[0][len(place) : len(head) - 1], colour
    yield "\n".join([lines[0][len(head) - 1 :], *lines[1:]]) + "\n", ""
    beside = [label for label in d.labels if label.file == d.file]
    spans = [_span(d, d.label, "^", colour), *(_span(x, x.text, "-", _SECOND) for x in beside)]
    yield from _snippet(list(filter(None, spans)), width)
    for label in d.labels:
        if label.file != d.file:
            text = f"{_place(label)}note: {_message(label.text)}"
            yield "\n".join(_wrapped(text, width, "  ")) + "\n", ""
            yield from _snippet(list(filter(None, [_span(label, None, "-", _SECOND)])), width)
    if d.help:
        first, *rest = _wrapped(f"help: {_message(d.help)}", width, "      ")
        yield first[:5], "bold green"
        yield "\n".join([first[5:], *rest]) + "\n", ""


def _place(d: Diagnostic | Label) -> str:
    parts = [d.file, d.line, d.column] if d.line is not None else [d.file]
    return "".join(f"{printable(str(part))}:" for part in parts if part is not None) + (" " if d.file else "")


def _message(text: str) -> str:
    # Indented, so that a line feed in a foreign name cannot begin a line of its own.
    return "\n  ".join(printable(line) for line in text.split("\n"))


def _wrapped(text: str, width: int | None, indent: str) -> list[str]:
    if width is None:
        return text.split("\n")
    lines: list[str] = []
    for line in text.split("\n"):
        start = indent if lines else ""
        lines += textwrap.wrap(
            line.lstrip() if lines else line,
            max(width, 20),
            initial_indent=start,
            subsequent_indent=indent,
            break_on_hyphens=False,
        ) or [""]
    return lines


class _Span(NamedTuple):
    """A stretch of a line that is marked, and what is said of it."""

    line: int
    column: int
    length: int
    source: str
    text: str
    mark: str
    style: str


def _span(d: Diagnostic | Label, text: str | None, mark: str, style: str) -> _Span | None:
    if d.source is None or d.line is None or d.column is None:
        return None
    length = max(1, (d.end_column or 0) - d.column)
    said = " ".join(printable(part) for part in (text or "").split("\n"))
    return _Span(d.line, d.column, length, d.source, said, mark, style)


def _snippet(spans: Sequence[_Span], width: int | None) -> Iterator[Segment]:
    """The lines of one file that have marks, each with its marks below; a line of dots where some are left
    out between them."""
    gutter = max((len(str(span.line)) for span in spans), default=0)
    before: int | None = None
    for line, group in groupby(sorted(spans), key=lambda span: span.line):
        if before is not None and line > before + 1:
            yield "...\n", "blue"
        before = line
        yield from _marked_line(f"{line:>{gutter}} | ", list(group), (width or _PIPE_WIDTH))


def _marked_line(front: str, spans: Sequence[_Span], width: int) -> Iterator[Segment]:
    """A line, and below it a line for each span; a line that is cut is shown again for each."""
    shown = ""
    for span in spans:
        window = _window(span.source, span.column - 1, span.length, width - len(front))
        if window.text != shown:
            shown = window.text
            yield front, "blue"
            yield f"{shown}\n", ""
        behind = f" {span.text}" if span.text else ""
        marks = " " * window.offset + span.mark * window.marks
        rows = [marks + behind]
        if behind and len(front) + len(rows[0]) > width:
            room = max(0, width - len(front) - len(span.text))
            rows = [marks, " " * min(window.offset, room) + span.text]
        for row in rows:
            yield " " * (len(front) - 2) + "| ", "blue"
            yield f"{row}\n", span.style


class _Window(NamedTuple):
    text: str
    offset: int
    """Columns before the marks."""
    marks: int


def _window(source: str, start: int, length: int, room: int) -> _Window:
    """What is shown of a line: all of it, or the part around the span, in ``room`` columns."""
    cells = [_cell(char) for char in source]
    start = min(start, len(cells))
    left, right = 0, len(cells)
    if sum(width for _, width in cells) > room:
        left, right = _around(cells, start, room - 2)
    text = "".join(shown for shown, _ in cells[left:right])
    before, after = "…" if left else "", "…" if right < len(cells) else ""
    offset = len(before) + sum(width for _, width in cells[left:start])
    marked = sum(width for _, width in cells[start : min(start + length, right)])
    return _Window(before + text + after, offset, max(1, marked))


def _around(cells: Sequence[tuple[str, int]], start: int, room: int) -> tuple[int, int]:
    """A stretch of ``room`` columns that begins a third of them before ``start``, where it can."""
    left, used = start, 0
    while left > 0 and used + cells[left - 1][1] <= room // 3:
        left -= 1
        used += cells[left][1]
    right, used = left, 0
    while right < len(cells) and used + cells[right][1] <= room:
        used += cells[right][1]
        right += 1
    while left > 0 and used + cells[left - 1][1] <= room:
        left -= 1
        used += cells[left][1]
    return left, right


def _cell(char: str) -> tuple[str, int]:
    """A character as it is shown, and its width in columns."""
    if char == "\t":
        return " " * _TAB, _TAB
    shown = printable(char)
    if shown != char:
        return shown, len(shown)
    if unicodedata.combining(char):
        return char, 0
    return char, 2 if unicodedata.east_asian_width(char) in "WF" else 1
