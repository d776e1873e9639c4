"""Random changes to training images, on whole batches.

What happens to an image depends on ``(key, id)`` alone: not on its batch, its place there, or on what
was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tlrecipe.language.spec import Augment
from tlrecipe.planning import randomness

Ids = NDArray[np.int64]


def augment_batch(images: Tensor, spec: Augment, *, key: int, ids: Ids) -> Tensor:
    """uint8 ``(B, 3, S, S)`` to the same shape; the input is not changed.

    ``key`` is ``randomness.key(seed, phase, epoch, "augment")``, ``ids`` are the images' numbers in their
    split, ``(B,)``. Changes are applied in the order of :data:`AUGMENTATIONS`.
    """
    for name, change in AUGMENTATIONS.items():
        amount = getattr(spec, name)
        if amount:
            images = change(images, amount, key, ids)
    return images


def flip_mask(key: int, ids: Ids) -> NDArray[np.bool_]:
    """Which images ``hflip`` mirrors, ``(B,)``: with it, both stored views of an image serve as draws."""
    return randomness.uniforms(randomness.key(key, "hflip"), ids) < 0.5


def _hflip(images: Tensor, _: bool, key: int, ids: Ids) -> Tensor:
    mask = torch.from_numpy(flip_mask(key, ids)).to(images.device)
    return torch.where(mask[:, None, None, None], images.flip(3), images)


def _crop(images: Tensor, margin: int, key: int, ids: Ids) -> Tensor:
    """The window of a random offset in an image that is padded by reflection, edges not repeated."""
    count, channels, side, _ = images.shape
    rows = _window("crop-y", margin, side, key, ids)
    columns = _window("crop-x", margin, side, key, ids)
    number = np.arange(count)[:, None, None]
    source = (number * side + rows[:, :, None]) * side + columns[:, None, :]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    taken = pixels.index_select(0, torch.from_numpy(source.reshape(-1)).to(images.device))
    return taken.view(count, side, side, channels).permute(0, 3, 1, 2)


def _window(stream: str, margin: int, side: int, key: int, ids: Ids) -> NDArray[np.int64]:
    """Source positions ``(B, side)`` of a window that starts ``-margin … margin`` pixels off."""
    draws = randomness.uniforms(randomness.key(key, stream), ids)
    offsets = np.floor(draws * (2 * margin + 1)).astype(np.int64) - margin
    positions: NDArray[np.int64] = (offsets[:, None] + np.arange(side)) % (2 * side - 2)
    mirrored = positions >= side
    positions[mirrored] = 2 * side - 2 - positions[mirrored]
    return positions


AUGMENTATIONS: Mapping[str, Callable[[Tensor, Any, int, Ids], Tensor]] = {
    "hflip": _hflip,
    "crop": _crop,
}
"""Each key of the grammar that changes images, in the order of application."""
