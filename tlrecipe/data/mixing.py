"""Mixing of images and their labels: mixup and CutMix, with a partner of its own for each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlrecipe.data.augment import Ids, draws
from tlrecipe.data.image_ops import inside_boxes, per_image
from tlrecipe.language.spec import Augment
from tlrecipe.planning import randomness


@dataclass(frozen=True)
class Mix:
    """What is mixed into each of the images ``(B,)``."""

    partners: Ids
    """Numbers of the images that are mixed in."""
    share: NDArray[np.float64]
    """How much of the label is the image's own."""
    opacity: NDArray[np.float64]
    """How much of each pixel is the image's own, outside of the box: 1 for CutMix."""
    boxes: NDArray[np.int64]
    """Left, top, width and height of what is the partner's alone: empty for mixup."""


def mix_of(spec: Augment, *, key: int, ids: Ids, order: Ids, side: int) -> Mix | None:
    """What is mixed into images in an epoch; None where ``spec`` mixes nothing.

    Partners are drawn from ``order``, all images of the epoch, and not from a batch: what happens to an
    image does not depend on which images are computed beside it.
    """
    if spec.mixup is None and spec.cutmix is None:
        return None
    partners = order[np.floor(draws(key, "partner", ids) * len(order)).astype(np.int64)]
    blends = np.full(len(ids), spec.cutmix is None)
    if spec.mixup is not None and spec.cutmix is not None:
        blends = draws(key, "mixup-or-cutmix", ids) < 0.5
    share, opacity = np.ones(len(ids)), np.ones(len(ids))
    boxes = np.zeros((len(ids), 4), dtype=np.int64)
    if spec.mixup is not None:
        drawn = randomness.betas(randomness.key(key, "mixup"), ids, spec.mixup)
        share = opacity = np.where(blends, drawn, 1.0)
    if spec.cutmix is not None:
        drawn = randomness.betas(randomness.key(key, "cutmix"), ids, spec.cutmix)
        boxes[~blends] = _cut(1 - drawn, key, ids, side)[~blends]
        # What the edge of the image cuts off does not count.
        share = share * (1 - boxes[:, 2] * boxes[:, 3] / side**2)
    return Mix(partners, share, opacity, boxes)


def _cut(area: NDArray[np.float64], key: int, ids: Ids, side: int) -> NDArray[np.int64]:
    """Squares of ``area`` shares of the image around uniform centres, cut off at its edges, ``(B, 4)``."""
    extent = np.floor(side * np.sqrt(area))
    ends = []
    for axis in ("x", "y"):
        centre = np.floor(draws(key, f"cutmix-{axis}", ids) * side)
        ends.append([np.clip(centre - extent // 2, 0, side), np.clip(centre + extent // 2, 0, side)])
    (left, right), (top, bottom) = ends
    return np.stack([left, top, right - left, bottom - top], axis=1).astype(np.int64)


def mixed(images: Tensor, partners: Tensor, mix: Mix) -> Tensor:
    """Normalised images ``(B, 3, S, S)`` with their partners mixed in."""
    inside = inside_boxes(mix.boxes, images.shape[-1]).to(images.device)
    share = per_image(mix.opacity).to(images.device)
    return torch.where(inside, partners, torch.lerp(partners, images, share))
