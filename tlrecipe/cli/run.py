"""`tlrecipe run`: from a recipe to a run directory with a trained model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.exceptions import Exit

from tlrecipe.artifacts.tracking import tracker
from tlrecipe.cli import console
from tlrecipe.cli.device import pick_device
from tlrecipe.cli.progress import percent, progress
from tlrecipe.cli.reporting import EXIT_STOPPED, warn
from tlrecipe.cli.signals import signals
from tlrecipe.planning.intervals import wilson_interval
from tlrecipe.workflow import checking

if TYPE_CHECKING:
    from tlrecipe.artifacts.runs import Run


def run(
    path: Path,
    overrides: Sequence[str],
    *,
    run_dir: Path | None,
    device: str,
    track: Sequence[str],
    plain: bool,
    quiet: bool,
    as_json: bool,
    exit_on: Sequence[str],
) -> None:
    """Validate, plan, train every phase, evaluate on the test split, write the run directory."""
    started = time.perf_counter()
    checked = checking.plan(path, overrides, needs_data=True)
    warn(checked.warnings)
    for text in track:
        try:
            tracker(text)
        except ValueError as error:
            raise click.UsageError(f"--track: {error}") from error
    # Torch and its company, after all that can be checked without them.
    from tlrecipe.training.engine import Stopped
    from tlrecipe.workflow.running import run

    with progress(plain=plain, quiet=quiet) as show:
        done = run(
            checked,
            run_dir=run_dir,
            device=pick_device(device),
            track=track,
            on_event=show,
            stop=signals(Stopped, exit_on),
            started=started,
        )
    report(done, as_json=as_json)


def report(run: Run, *, as_json: bool) -> None:
    """Say how a run ended and what comes next; exit with 75 where it was stopped."""
    result = run.result
    if as_json:
        console.out(json.dumps({**result, "run_dir": str(run.path)}, indent=2))
    elif run.complete:
        for split in ("test", "val"):
            if split in run.metrics:
                console.out(accuracy_line(split, run.metrics[split]))
                break
        console.out(f"run directory: {run.path}\nreport: {run.path / 'report.html'}")
        console.out(f"next: tlrecipe predict {run.path} IMAGE…")
    else:
        console.out(f"stopped: {run.path}\nnext: tlrecipe resume {run.path}")
    if not run.complete:
        raise Exit(EXIT_STOPPED)


def accuracy_line(split: str, metrics: Mapping[str, Any]) -> str:
    """The accuracy of a split, with what chance leaves open where the number of images is known."""
    text = f"{split} accuracy {percent(metrics['accuracy'])}"
    if "count" not in metrics:
        return text
    low, high = wilson_interval(metrics["accuracy"], metrics["count"])
    return f"{text} (95 % interval {percent(low)} to {percent(high)}, {metrics['count']:,} images)"
