"""`tlrecipe predict`: the classes of single images, from a bundle alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from click.exceptions import Exit

from tlrecipe.cli import console
from tlrecipe.cli.device import pick_device
from tlrecipe.cli.progress import Receiver, progress

if TYPE_CHECKING:
    from tlrecipe.artifacts.predictions import Prediction

_EXIT_DATA = 4


def predict(
    path: Path,
    images: Sequence[Path],
    out: Path | None,
    *,
    top: int,
    batch_size: int,
    device: str,
    keep_going: bool,
    plain: bool,
    quiet: bool,
) -> None:
    """Write one row per image; exit 4 at the end if some could not be used, unless ``keep_going``."""
    from tlrecipe.artifacts.bundle import Model, find_bundle
    from tlrecipe.artifacts.predictions import csv_lines, inputs, write_predictions

    model = Model.load(find_bundle(path), pick_device(device))
    top = min(top, len(model.classes))
    paths = inputs(images)
    bad = 0

    def counted(show: Receiver) -> Iterator[Prediction]:
        nonlocal bad
        for done, prediction in enumerate(model.predict(paths, top, batch_size), 1):
            bad += prediction.error is not None
            show("predictions", done=done, total=len(paths))
            yield prediction

    # On a terminal the rows themselves show how far it is.
    rows_are_seen = out is None and sys.stdout.isatty()
    with progress(plain=plain, quiet=quiet or rows_are_seen) as show:
        if out is None:
            for line in csv_lines(counted(show), top):
                console.data(line.removesuffix("\n"))
        else:
            write_predictions(counted(show), out, top)
    if bad:
        console.note(f"{bad} of {len(paths)} files could not be used: see the column `error`")
        if not keep_going:
            raise Exit(_EXIT_DATA)
