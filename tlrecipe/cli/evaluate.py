"""`tlrecipe evaluate`: metrics of a trained model on labelled images, from its bundle alone."""

from __future__ import annotations

import json
from pathlib import Path

from tlrecipe.cli import console
from tlrecipe.cli.device import pick_device
from tlrecipe.cli.progress import progress


def evaluate(path: Path, data: Path | None, *, device: str, as_json: bool) -> None:
    """Print loss and accuracy on the test split, or on the validation split where there is no other.

    ``data`` is a folder or zip of images, or a recipe whose data is meant; by default the data that the
    model was trained with. A folder without split folders is evaluated whole.
    """
    from tlrecipe.artifacts.bundle import Model, find_bundle
    from tlrecipe.cli.run import accuracy_line
    from tlrecipe.workflow.evaluating import evaluate

    folder = find_bundle(path)
    model = Model.load(folder, pick_device(device))
    with progress(plain=False) as show:
        measured = evaluate(model, data, on_event=show)
    split, metrics = measured.split, measured.metrics
    if as_json:
        console.out(json.dumps({"model": str(folder), "split": split, "metrics": metrics}, indent=2))
    else:
        console.out(accuracy_line(split, metrics))
        console.out(f"{split} loss {metrics['loss']:.4f}")
