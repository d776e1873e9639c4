"""`tlrecipe report`: the page of a run, made again from its directory."""

from __future__ import annotations

from pathlib import Path

from tlrecipe.cli import console


def report(run_dir: Path, out: Path | None) -> None:
    """Write the report of a run and print where it is."""
    from tlrecipe.artifacts.report.page import write_report

    console.out(str(write_report(run_dir, out)))
