"""A trained model measured on labelled images, from its bundle alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tlrecipe.artifacts.bundle import Model
from tlrecipe.artifacts.predictions import write_evaluated
from tlrecipe.data.listing import Listing
from tlrecipe.data.pixels import Pixels
from tlrecipe.data.sources import list_data
from tlrecipe.language.diagnostics import TlrecipeError
from tlrecipe.language.spec import DataSpec, FolderData, ManifestData
from tlrecipe.language.text import load
from tlrecipe.training.engine import Emit
from tlrecipe.training.evaluate import evaluate_pixels
from tlrecipe.workflow.decoding import DecodedData, left_out
from tlrecipe.workflow.device import pick_device

_MANIFESTS = (".csv", ".jsonl", ".ndjson", ".parquet")

_EXAMPLES = 5


@dataclass(frozen=True)
class Measured:
    """What a model came to on one split."""

    split: str
    """``"test"``, ``"val"`` or ``"train"``."""
    report: dict[str, Any]
    """What a run writes to ``evaluation.json``: ``split``, ``metrics``, ``intervals``, ``classes``,
    ``per_class``, ``confusion_matrix`` and ``calibration``."""

    @property
    def metrics(self) -> dict[str, Any]:
        """``loss`` (mean negative log likelihood in nats), ``accuracy`` and the others that a recipe may
        name, ``count`` (images), ``precision`` (what was computed in)."""
        found: dict[str, Any] = self.report["metrics"]
        return found

    @property
    def intervals(self) -> dict[str, list[float]]:
        """95 % intervals of the metrics: the lower and the upper end."""
        found: dict[str, list[float]] = self.report["intervals"]
        return found


def evaluate(
    model: Model | str | Path,
    data: str | Path | None = None,
    *,
    device: torch.device | str = "auto",
    predictions: Path | None = None,
    on_event: Emit = lambda kind, /, **fields: None,
) -> Measured:
    """All metrics on the test split, or on the validation split where there is no other.

    Args:
        model: A model, or the run directory or bundle folder that it is loaded from.
        data: A folder or zip of images, or a recipe whose data is meant; by default the data that the
            model was trained with. A folder without split folders is evaluated whole.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or a device of torch, for a model that is loaded here.
        predictions: Where to write a CSV with the true and the predicted class of each image, if anywhere.
        on_event: Called with the events ``data``, ``evaluation`` and ``warning``.

    Raises:
        TlrecipeError: TLR401, TLR402 or TLR404 where the data cannot be used, TLR403 where its classes are
            not the model's, TLR504 where there is no sound model.
        ValueError: where there is no such device.
    """
    if not isinstance(model, Model):
        model = Model.load(model, pick_device(device))
    spec, seed = (model.bundle.data, model.bundle.recipe.seed) if data is None else _chosen(Path(data))
    listing = list_data(spec, seed)
    _check_classes(listing.info.classes, model.classes)
    split = _split(listing, whole=data is not None)
    pixels = DecodedData(listing, spec.on_bad, on_event)(split, model.preprocessing)
    assert pixels is not None
    for odd in (*listing.warnings, *left_out(pixels, listing)):
        on_event("warning", message=odd.message)
    pixels = _relabelled(pixels, listing.info.classes, model.classes)
    count = len(pixels)
    found = evaluate_pixels(
        model.inference,
        pixels,
        model.preprocessing,
        told=lambda done: on_event("evaluation", phase=None, split=split, done=done, total=count),
    )
    if predictions is not None:
        write_evaluated(pixels.names, found.predictions(model.classes), predictions)
    report = found.report(model.classes)
    report["metrics"] |= {"count": found.count, "precision": model.inference.precision}
    return Measured(split, {"split": split, **report})


def _chosen(data: Path) -> tuple[DataSpec, int]:
    if data.suffix == ".toml":
        recipe = load(data).recipe
        return recipe.data, recipe.seed
    if data.suffix.lower() in _MANIFESTS:
        return ManifestData(source="manifest", path=str(data), val=0.0), 0
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
    place = {name: index for index, name in enumerate(known)}
    return replace(pixels, labels=torch.tensor([place[name] for name in found])[pixels.labels])
