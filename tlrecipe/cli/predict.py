"""`tlrecipe predict`: the classes of single images, from a bundle alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from click.exceptions import Exit

from tlrecipe.cli import console
from tlrecipe.cli.device import pick_device

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
) -> None:
    """Write one row per image; exit 4 at the end if some could not be used, unless ``keep_going``."""
    from tlrecipe.artifacts.bundle import Model, find_bundle
    from tlrecipe.artifacts.predictions import csv_lines, inputs, write_predictions

    model = Model.load(find_bundle(path), pick_device(device))
    top = min(top, len(model.classes))
    total = bad = 0

    def counted() -> Iterator[Prediction]:
        nonlocal total, bad
        for prediction in model.predict(inputs(images), top, batch_size):
            total += 1
            bad += prediction.error is not None
            yield prediction

    if out is None:
        for line in csv_lines(counted(), top):
            console.data(line.removesuffix("\n"))
    else:
        write_predictions(counted(), out, top)
    if bad:
        console.note(f"{bad} of {total} files could not be used: see the column `error`")
        if not keep_going:
            raise Exit(_EXIT_DATA)
