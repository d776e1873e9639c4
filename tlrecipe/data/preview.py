"""A contact sheet: what a phase's augmentation makes of some training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tlrecipe.data.augment import Ids, augment_batch
from tlrecipe.data.listing import Listing
from tlrecipe.data.mixing import Mix, mix_of, mixed
from tlrecipe.data.pixels import decode_split
from tlrecipe.data.sampling import epoch_order
from tlrecipe.planning.plan import PhasePlan, Plan
from tlrecipe.planning.randomness import key

_TILE = 112
_GAP = 6
_TITLE, _LABEL = 28, 15
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
# The label of a mixed image: above this share it has one class.
_WHOLE = 0.995


@dataclass(frozen=True)
class Row:
    """The same images once more."""

    title: str
    images: Tensor
    """uint8 ``(B, 3, S, S)``."""
    labels: tuple[str, ...]


def preview_rows(plan: Plan, phase: PhasePlan, listing: Listing, images: int, epochs: int) -> Iterator[Row]:
    """Some training images as they are, then as the first epochs of ``phase`` see them: the run's own draws,
    by the images' numbers in the training split (as long as no file before them is left out).

    Raises ``TlrecipeError`` for images that cannot be used.
    """
    split = listing.splits["train"]
    chosen = _spread(split.labels, images)
    orders = [
        epoch_order(phase.sampling, key(plan.seed, phase.name, epoch, "order"), split.labels)
        for epoch in range(epochs)
    ]
    mixes = [
        mix_of(
            phase.augment,
            key=key(plan.seed, phase.name, epoch, "mix"),
            ids=chosen,
            order=orders[epoch],
            side=phase.size,
        )
        for epoch in range(epochs)
    ]
    partners = [mix.partners % len(split) for mix in mixes if mix is not None]
    needed = np.unique(np.concatenate([chosen, *partners]))
    keep = np.zeros(len(split), dtype=bool)
    keep[needed] = True
    preprocessing = replace(plan.preprocessing, size=phase.size)
    few = replace(listing, splits={"train": split.take(keep)})
    decoded = decode_split(few, "train", preprocessing, on_bad="error")

    def names(rows: Ids) -> list[str]:
        return [plan.classes[label] for label in split.labels[rows % len(split)]]

    def fitted(rows: Ids) -> Tensor:
        places = torch.from_numpy(np.searchsorted(needed, rows % len(split)))
        return decoded.batch(places, preprocessing)

    yield Row("as it is", fitted(chosen), tuple(names(chosen)))
    for epoch, mix in enumerate(mixes):
        stream = key(plan.seed, phase.name, epoch, "augment")
        if phase.augment.views is not None:
            stream = key(plan.seed, "views", epoch % phase.augment.views)

        def augmented(rows: Ids, stream: int = stream) -> Tensor:
            return augment_batch(fitted(rows), phase.augment, key=stream, ids=rows)

        changed, labels = augmented(chosen), names(chosen)
        if mix is not None:
            floats = mixed(changed.float(), augmented(mix.partners).float(), mix)
            changed = floats.round_().to(torch.uint8)
            labels = _mixed_labels(labels, names(mix.partners), mix)
        title = f"view {epoch + 1}" if phase.augment.views is not None else f"epoch {epoch + 1}"
        yield Row(title, changed, tuple(labels))


def _spread(labels: Ids, count: int) -> Ids:
    """Rows of ``count`` images, of as many classes as possible."""
    order = np.argsort(labels, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64)
    return np.sort(order[np.unique(places)])


def _mixed_labels(own: Sequence[str], others: Sequence[str], mix: Mix) -> list[str]:
    return [
        mine if share > _WHOLE or mine == other else f"{share:.0%} {mine}, {other}"
        for mine, other, share in zip(own, others, mix.share.tolist(), strict=True)
    ]


def contact_sheet(phases: Sequence[tuple[str, Sequence[Row]]]) -> Image.Image:
    """One picture: for each phase its title, and a line of tiles for each row, with the label below each."""
    columns = max(len(row.images) for _, rows in phases for row in rows)
    side = 70
    height = sum(_TITLE + len(rows) * (_TILE + _LABEL + _GAP) for _, rows in phases)
    sheet = Image.new("RGB", (side + columns * (_TILE + _GAP), height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(15), ImageFont.load_default(10)
    y = 0
    for title, rows in phases:
        draw.text((_GAP, y + 6), title, _INK, large)
        y += _TITLE
        for row in rows:
            draw.text((_GAP, y + _TILE // 2), row.title, _INK, small)
            for column, (image, label) in enumerate(zip(row.images, row.labels, strict=True)):
                x = side + column * (_TILE + _GAP)
                tile = Image.fromarray(image.permute(1, 2, 0).numpy())
                sheet.paste(tile.resize((_TILE, _TILE), Image.Resampling.BICUBIC), (x, y))
                draw.text((x, y + _TILE + 1), _shortened(label, small, draw), _INK, small)
            y += _TILE + _LABEL + _GAP
    return sheet


def _shortened(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, draw: ImageDraw.ImageDraw
) -> str:
    if draw.textlength(text, font) <= _TILE:
        return text
    while text and draw.textlength(f"{text}…", font) > _TILE:
        text = text[:-1]
    return f"{text}…"
