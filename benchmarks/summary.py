"""The table at the end of the benchmarks, on the terminal and in docs/performance.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tlrecipe.models.fast import native_bf16

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

# Points by which two accuracies may differ and still be equal.
ACCURACY_POINTS = 0.5

HEADER = ("case", "ours", "theirs", "ratio", "least", "aim", "accuracy: ours, theirs", "met")


@dataclass(frozen=True)
class Row:
    """One case of the table."""

    case: str
    ours: str
    """What was measured on our side, with its unit."""
    theirs: str
    ratio: float
    least: float
    aim: float
    larger_is_better: bool = True
    accuracies: tuple[float, float] | None = None
    """Means over the seeds, ours and theirs, where both train to the same end."""
    note: str = ""

    @property
    def equal(self) -> bool:
        """Whether both sides are equally accurate; faster and worse does not count."""
        return abs(self._better) <= ACCURACY_POINTS

    @property
    def _better(self) -> float:
        """Points by which ours is more accurate."""
        return 0.0 if self.accuracies is None else (self.accuracies[0] - self.accuracies[1]) * 100

    def reaches(self, goal: float) -> bool:
        return self.equal and (self.ratio >= goal if self.larger_is_better else self.ratio <= goal)

    @property
    def verdict(self) -> str:
        if not self.equal:
            which = "more" if self._better > 0 else "less"
            return f"not compared: ours is {abs(self._better):.1f} points {which} accurate"
        if self.reaches(self.aim):
            return "yes, aim"
        return "yes" if self.reaches(self.least) else "no"

    def cells(self) -> tuple[str, ...]:
        sign = "≥" if self.larger_is_better else "≤"
        accuracies = "–"
        if self.accuracies is not None:
            accuracies = ", ".join(f"{100 * value:.1f} %" for value in self.accuracies)
        case = f"{self.case} ({self.note})" if self.note else self.case
        return (
            case,
            self.ours,
            self.theirs,
            f"{self.ratio:.3g}",
            f"{sign} {self.least:g}",
            f"{sign} {self.aim:g}",
            accuracies,
            self.verdict,
        )


def machine() -> str:
    """One line on what the numbers were measured on."""
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    level = torch.backends.cpu.get_cpu_capability()
    bf16 = "native" if native_bf16("cpu") else "emulated"
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{name}, {level}, {threads}, torch {torch.__version__}, bfloat16 {bf16}"


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table whose columns are also aligned on a terminal."""
    return _aligned([row.cells() for row in rows])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [HEADER, *rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    cells.insert(1, tuple("-" * width for width in widths))
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]


def write_docs(rows: Sequence[Row], about: str) -> None:
    """Put the table between the two marks of docs/performance.md.

    Rows that are there and were measured on the same machine stay, where this run has no newer ones.
    """
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    cells = [row.cells() for row in rows]
    if _machine(about) == _machine(old.strip()):
        cells = _merged(_cells(old), cells)
    DOCUMENT.write_text("\n".join([before + BEGIN, about, "", *_aligned(cells), END + after]))


def _machine(about: str) -> str:
    return about.partition(";")[0]


def _cells(text: str) -> list[tuple[str, ...]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def _merged(old: list[tuple[str, ...]], new: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    found = {row[0]: row for row in old} | {row[0]: row for row in new}
    return list(found.values())
