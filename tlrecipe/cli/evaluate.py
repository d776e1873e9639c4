"""`tlrecipe evaluate`: metrics of a trained model on labelled images, from its bundle alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tlrecipe.cli import console
from tlrecipe.cli.device import pick_device
from tlrecipe.cli.progress import progress
from tlrecipe.cli.reporting import warn
from tlrecipe.language.diagnostics import TlrecipeError

if TYPE_CHECKING:
    from tlrecipe.data.listing import Listing
    from tlrecipe.data.pixels import Pixels
    from tlrecipe.language.spec import DataSpec

_EXAMPLES = 5


def evaluate(path: Path, data: Path | None, *, device: str, as_json: bool) -> None:
    """Print loss and accuracy on the test split, or on the validation split where there is no other.

    ``data`` is a folder or zip of images, or a recipe whose data is meant; by default the data that the
    model was trained with. A folder without split folders is evaluated whole.
    """
    from tlrecipe.artifacts.bundle import Model, find_bundle
    from tlrecipe.cli.decoding import DecodedData, left_out
    from tlrecipe.cli.run import accuracy_line
    from tlrecipe.data.sources import list_data
    from tlrecipe.training.evaluate import evaluate_pixels, wilson_interval

    folder = find_bundle(path)
    model = Model.load(folder, pick_device(device))
    spec, seed = (model.bundle.data, model.bundle.recipe.seed) if data is None else _chosen(data)
    listing = list_data(spec, seed)
    warn(listing.warnings)
    _check_classes(listing.info.classes, model.classes)
    split = _split(listing, whole=data is not None)
    with progress(plain=False) as emit:
        pixels = DecodedData(listing, spec.on_bad, emit)(split, model.preprocessing)
    assert pixels is not None
    warn(left_out(pixels, listing))
    pixels = _relabelled(pixels, listing.info.classes, model.classes)
    found = evaluate_pixels(model.inference, pixels, model.preprocessing)
    metrics: dict[str, Any] = {
        **found.as_dict(),
        "count": found.count,
        "precision": model.inference.precision,
    }
    if as_json:
        metrics["accuracy_interval"] = list(wilson_interval(found.accuracy, found.count))
        console.out(json.dumps({"model": str(folder), "split": split, "metrics": metrics}, indent=2))
    else:
        console.out(accuracy_line(split, metrics))
        console.out(f"{split} loss {found.loss:.4f}")


def _chosen(data: Path) -> tuple[DataSpec, int]:
    if data.suffix == ".toml":
        from tlrecipe.language.text import load

        recipe = load(data).recipe
        return recipe.data, recipe.seed
    from tlrecipe.language.spec import FolderData

    return FolderData(source="folder", path=str(data), val=0.0), 0


def _split(listing: Listing, *, whole: bool) -> str:
    for split in ("test", "val", "train") if whole else ("test", "val"):
        if split in listing.splits:
            return split
    raise TlrecipeError.of(
        "TLR401",
        f"`{listing.info.origin}` has neither a test nor a validation split",
        help="name other data with --data",
    )


def _check_classes(found: Sequence[str], known: Sequence[str]) -> None:
    more, fewer = sorted(set(found) - set(known)), sorted(set(known) - set(found))
    if more or fewer:
        parts = [
            f"{what} {', '.join(f'`{name}`' for name in names[:_EXAMPLES])}{' …' * (len(names) > _EXAMPLES)}"
            for what, names in (("the model does not know", more), ("the data lacks", fewer))
            if names
        ]
        raise TlrecipeError.of("TLR403", f"the classes are not the model's: {'; '.join(parts)}")


def _relabelled(pixels: Pixels, found: Sequence[str], known: Sequence[str]) -> Pixels:
    """Labels in the model's order of classes: the data sorts them by name, the model may not."""
    import torch

    place = {name: index for index, name in enumerate(known)}
    return replace(pixels, labels=torch.tensor([place[name] for name in found])[pixels.labels])
