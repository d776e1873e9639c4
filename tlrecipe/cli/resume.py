"""`tlrecipe resume`: go on where a run stopped, to the same result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tlrecipe.artifacts.runs import Run
from tlrecipe.cli import console
from tlrecipe.cli.device import pick_device
from tlrecipe.cli.progress import progress
from tlrecipe.cli.run import report
from tlrecipe.cli.signals import signals


def resume(
    path: Path,
    *,
    device: str,
    plain: bool,
    quiet: bool,
    as_json: bool,
    strict: bool,
    exit_on: Sequence[str],
) -> None:
    """Go on with the run in the folder ``path`` from its newest valid checkpoint."""
    started = time.perf_counter()
    if Run.load(path).complete and (path / "report.html").is_file():
        console.out(f"already complete: {path}")
        return
    # Torch and its company, after all that can be checked without them.
    from tlrecipe.training.engine import Stopped
    from tlrecipe.workflow.running import resume

    with progress(plain=plain, quiet=quiet) as show:
        done = resume(
            path,
            device=pick_device(device),
            strict=strict,
            on_event=show,
            stop=signals(Stopped, exit_on),
            started=started,
        )
    report(done, as_json=as_json)
