"""`tlrecipe compare`: runs side by side, in the terminal and as a page."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlrecipe import files
from tlrecipe.cli import console
from tlrecipe.cli.progress import percent
from tlrecipe.cli.render import printable

if TYPE_CHECKING:
    from tlrecipe.artifacts.report.comparison import Comparison, Entry

_WIDTH = 80
_SPARKS = 24


def compare(run_dirs: Sequence[Path], out: Path | None, *, as_json: bool) -> None:
    """Print what differs between runs and what each reached; with ``out``, write a page too.

    Raises TLR601 where a folder is no run directory, and TLR901.
    """
    from tlrecipe.artifacts.report.comparison import compare, comparison_page
    from tlrecipe.artifacts.report.record import read_record

    found = compare([read_record(path) for path in run_dirs])
    if out is not None:
        files.write_atomic(out, comparison_page(found).encode())
    if as_json:
        console.out(json.dumps(found.as_dict(), indent=2, allow_nan=False))
        return
    console.out("\n".join(_lines(found)))
    if out is not None:
        console.note(f"page: {out}")


def _lines(found: Comparison) -> list[str]:
    from tlrecipe.artifacts.report.comparison import verdict

    lines = [line for entry in found.entries for line in _wrapped(f"{entry.letter}  {_named(entry)}", 3)]
    lines += ["", f"   {'accuracy':>8}   {'95 % interval':<18}{'loss':>8}{'time':>14}   accuracy over epochs"]
    lines += [_row(entry) for entry in found.entries]
    if found.duels or found.not_paired:
        lines.append("")
    for duel in found.duels:
        lines += _wrapped(verdict(duel), 2)
    if found.not_paired:
        first, others = found.entries[0].letter, ", ".join(found.not_paired)
        lines += _wrapped(f"not measured on the images of {first}: {others}", 2)
    lines += ["", "what differs in the recipes" if found.differences else "the recipes do not differ"]
    for difference in found.differences:
        values = [f"{e.letter} {value}" for e, value in zip(found.entries, difference.values, strict=True)]
        whole = printable(f"  {difference.key:<28}  {'   '.join(values)}")
        if len(whole) <= _WIDTH:
            lines.append(whole)
        else:
            lines += _wrapped(f"  {difference.key}", 4)
            lines += [part for value in values for part in _wrapped(f"      {value}", 8)]
    return lines


def _named(entry: Entry) -> str:
    record = entry.record
    state = "" if record.complete else ", not finished"
    return f"{record.plan.name}{state}  {record.path}"


def _row(entry: Entry) -> str:
    from tlrecipe.artifacts.report.charts import sparkline
    from tlrecipe.artifacts.report.comparison import learning
    from tlrecipe.artifacts.report.page import MEASURES, thinned
    from tlrecipe.artifacts.report.text import duration

    accuracy = "–" if entry.accuracy is None else percent(entry.accuracy)
    ends = entry.interval
    interval = f"{percent(ends[0])} to {percent(ends[1])}" if ends else "–"
    loss = f"{entry.metrics['loss']:.4f}" if "loss" in entry.metrics else "–"
    time = "–" if entry.seconds is None else duration(entry.seconds)
    measure = next(measure for measure in MEASURES if measure.key == "accuracy")
    curve = [value for _, value in thinned(learning(entry, measure), _SPARKS)]
    sparks = sparkline(curve) if curve else "–"
    return f"{entry.letter:<3}{accuracy:>8}   {interval:<18}{loss:>8}{time:>14}   {sparks}"


def _wrapped(line: str, indent: int) -> list[str]:
    """A line that may hold foreign names, in 80 columns."""
    shown = printable(line)
    start = len(shown) - len(shown.lstrip())
    return textwrap.wrap(
        shown.strip(),
        _WIDTH,
        initial_indent=" " * start,
        subsequent_indent=" " * max(indent, start),
        break_on_hyphens=False,
    )
