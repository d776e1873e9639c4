"""Random changes to training images, on whole batches.

What happens to an image depends on ``(key, id)`` alone: not on its batch, its place there, or on what
was drawn before. Mixing with another image is in :mod:`tlrecipe.data.mixing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from tlrecipe.data import image_ops as ops
from tlrecipe.language.spec import Augment, ColorJitter, RandAugment, RandomErasing, ResizedCrop
from tlrecipe.planning import randomness

Ids = NDArray[np.int64]


def augment_batch(images: Tensor, spec: Augment, *, key: int, ids: Ids) -> Tensor:
    """uint8 ``(B, 3, S, S)`` to the same shape, in channels-last memory; the input is not changed.

    ``key`` is ``randomness.key(seed, phase, epoch, "augment")``, ``ids`` are the images' numbers in their
    split, ``(B,)``. Changes are applied in the order of :data:`AUGMENTATIONS`.
    """
    for name, change in AUGMENTATIONS.items():
        amount = getattr(spec, name)
        if amount:
            images = change(images, amount, key, ids)
    return images.contiguous(memory_format=torch.channels_last)


def draws(key: int, stream: str, ids: Ids) -> NDArray[np.float64]:
    """A number in [0, 1) for each image, ``(B,)``."""
    return randomness.uniforms(randomness.key(key, stream), ids)


# --------------------------------------------------------------------------- flips and crops


def flip_mask(key: int, ids: Ids) -> NDArray[np.bool_]:
    """Which images ``hflip`` mirrors, ``(B,)``: with it, both stored views of an image serve as draws."""
    return draws(key, "hflip", ids) < 0.5


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
    offsets = np.floor(draws(key, stream, ids) * (2 * margin + 1)).astype(np.int64) - margin
    positions: NDArray[np.int64] = (offsets[:, None] + np.arange(side)) % (2 * side - 2)
    mirrored = positions >= side
    positions[mirrored] = 2 * side - 2 - positions[mirrored]
    return positions


_ATTEMPTS = 10


def random_boxes(
    stream: str, key: int, ids: Ids, side: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> NDArray[np.int64]:
    """Boxes ``(B, 4)`` as left, top, width, height: area uniform in ``scale``, logarithm of the shape uniform
    in ``ratio``, place uniform.

    The first of ten draws that fits into the image, as torchvision does it; where none does, the largest
    centred box whose shape is allowed.
    """
    # Where nothing fits, the shape nearest to the square image's own.
    nearest = min(max(1.0, ratio[0]), ratio[1])
    width = np.full(len(ids), round(side * min(1.0, nearest)))
    height = np.full(len(ids), round(side / max(1.0, nearest)))
    left, top = (side - width) // 2, (side - height) // 2
    for attempt in reversed(range(_ATTEMPTS)):
        area = side * side * _between(scale, draws(key, f"{stream}-area-{attempt}", ids))
        logs = (log(ratio[0]), log(ratio[1]))
        shape = np.exp(_between(logs, draws(key, f"{stream}-shape-{attempt}", ids)))
        w, h = np.rint(np.sqrt(area * shape)), np.rint(np.sqrt(area / shape))
        fits = (w > 0) & (w <= side) & (h > 0) & (h <= side)
        x = np.floor(draws(key, f"{stream}-x-{attempt}", ids) * (side - w + 1))
        y = np.floor(draws(key, f"{stream}-y-{attempt}", ids) * (side - h + 1))
        width, height = np.where(fits, w, width), np.where(fits, h, height)
        left, top = np.where(fits, x, left), np.where(fits, y, top)
    return np.stack([left, top, width, height], axis=1).astype(np.int64)


def _between(ends: tuple[float, float], share: NDArray[np.float64]) -> NDArray[np.float64]:
    return ends[0] + (ends[1] - ends[0]) * share


def _resized_crop(images: Tensor, spec: ResizedCrop, key: int, ids: Ids) -> Tensor:
    boxes = random_boxes("resized-crop", key, ids, images.shape[-1], spec.scale, spec.ratio)
    return ops.crop_and_resize(images, boxes)


def _rotation(images: Tensor, degrees: float, key: int, ids: Ids) -> Tensor:
    angles = _between((-degrees, degrees), draws(key, "rotation", ids))
    return ops.affine(images, _turned(angles), reflect=True)


def _turned(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where pixels of an image that is turned counter-clockwise come from, ``(B, 2, 3)``."""
    matrices = np.zeros((len(degrees), 2, 3))
    angles = np.deg2rad(degrees)
    matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angles)
    matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(angles), np.sin(angles)
    return matrices


# --------------------------------------------------------------------------- colour


def _color_jitter(images: Tensor, spec: ColorJitter, key: int, ids: Ids) -> Tensor:
    """Each image has its own order of the four changes, as in torchvision."""
    names = ("brightness", "contrast", "saturation", "hue")
    ranks = np.argsort([draws(key, f"jitter-order-{name}", ids) for name in names], axis=0)
    for place in ranks:
        for index, name in enumerate(names):
            largest = getattr(spec, name)
            amounts = _between((-largest, largest), draws(key, f"jitter-{name}", ids))
            if largest:
                amounts = amounts if name == "hue" else 1 + amounts
                images = _changed(images, place == index, getattr(ops, name), amounts)
    return images


def _changed(
    images: Tensor,
    chosen: NDArray[np.bool_],
    change: Callable[[Tensor, NDArray[Any]], Tensor],
    amounts: NDArray[Any],
) -> Tensor:
    """``images`` with those that are ``chosen`` changed, all at once."""
    if not chosen.any():
        return images
    rows = torch.from_numpy(np.flatnonzero(chosen))
    return images.index_copy(0, rows, change(images[rows], amounts[chosen]))


def _erasing(images: Tensor, spec: RandomErasing, key: int, ids: Ids) -> Tensor:
    """Each pixel of the rectangle becomes a random colour of its own, which the paper finds best."""
    side = images.shape[-1]
    boxes = random_boxes("erasing", key, ids, side, spec.scale, spec.ratio)
    boxes[draws(key, "erasing", ids) >= spec.probability] = 0
    erased = ops.inside_boxes(boxes, side).expand(images.shape).nonzero()
    image, channel, row, column = erased.T.numpy()
    numbers = ((ids[image] * 3 + channel) * side + row) * side + column
    noise = (draws(key, "erasing-noise", numbers) * 256).astype(np.uint8)
    result = images.clone()
    result[tuple(erased.T)] = torch.from_numpy(noise)
    return result


# --------------------------------------------------------------------------- drawn operations

_GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_SIGNED = (*_GEOMETRIC, "brightness", "saturation", "contrast", "sharpness")
OPERATIONS = ("identity", *_SIGNED, "posterize", "solarize", "autocontrast", "equalize")
"""What RandAugment and TrivialAugment draw from, all equally often."""

_RAND_AUGMENT: dict[str, float] = {
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
    "rotate": 30.0,
    "brightness": 0.9,
    "saturation": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
}
"""The strongest amounts of the signed operations; translations are shares of the side."""
_RAND_AUGMENT_BITS = 4.0
_TRIVIAL_AUGMENT: dict[str, float] = _RAND_AUGMENT | {
    "shear_x": 0.99,
    "shear_y": 0.99,
    "rotate": 135.0,
    "brightness": 0.99,
    "saturation": 0.99,
    "contrast": 0.99,
    "sharpness": 0.99,
}
_TRIVIAL_PIXELS = 32.0
_TRIVIAL_BITS = 6.0
_STRONGEST = 30


def _rand_augment(images: Tensor, spec: RandAugment, key: int, ids: Ids) -> Tensor:
    side = images.shape[-1]
    limits = _RAND_AUGMENT | {name: _RAND_AUGMENT[name] * side for name in ("translate_x", "translate_y")}
    strength = np.full(len(ids), spec.magnitude / _STRONGEST)
    for number in range(spec.operations):
        stream = randomness.key(key, "rand-augment", number)
        images = _drawn(images, strength, limits, _RAND_AUGMENT_BITS, stream, ids)
    return images


def _trivial_augment(images: Tensor, _: bool, key: int, ids: Ids) -> Tensor:
    """The wide space of the paper, as in torchvision: translations by up to 32 pixels."""
    limits = _TRIVIAL_AUGMENT | dict.fromkeys(("translate_x", "translate_y"), _TRIVIAL_PIXELS)
    stream = randomness.key(key, "trivial-augment")
    strength = np.floor(draws(stream, "strength", ids) * (_STRONGEST + 1)) / _STRONGEST
    return _drawn(images, strength, limits, _TRIVIAL_BITS, stream, ids)


def _drawn(
    images: Tensor,
    strength: NDArray[np.float64],
    limits: Mapping[str, float],
    lost_bits: float,
    stream: int,
    ids: Ids,
) -> Tensor:
    """One operation of :data:`OPERATIONS` for each image, ``strength`` ``(B,)`` from 0 to 1."""
    which = np.floor(draws(stream, "operation", ids) * len(OPERATIONS)).astype(np.int64)
    signs = np.where(draws(stream, "sign", ids) < 0.5, -1.0, 1.0)
    chosen = {name: which == index for index, name in enumerate(OPERATIONS)}
    signed = {name: signs * strength * limit for name, limit in limits.items()}
    moved = np.any([chosen[name] for name in _GEOMETRIC], axis=0)
    matrices = _moves({name: np.where(chosen[name], signed[name], 0.0) for name in _GEOMETRIC}, images)
    images = _changed(images, moved, ops.affine, matrices)
    for name in ("brightness", "saturation", "contrast", "sharpness"):
        images = _changed(images, chosen[name], getattr(ops, name), 1 + signed[name])
    bits = 8 - np.rint(strength * lost_bits).astype(np.int64)
    images = _changed(images, chosen["posterize"], ops.posterize, bits)
    images = _changed(images, chosen["solarize"], ops.solarize, 255 * (1 - strength))
    images = _changed(images, chosen["autocontrast"], lambda part, _: tv.autocontrast(part), strength)
    return _changed(images, chosen["equalize"], lambda part, _: tv.equalize(part), strength)


def _moves(amounts: Mapping[str, NDArray[np.float64]], images: Tensor) -> NDArray[np.float64]:
    """Where pixels come from, ``(B, 2, 3)`` from the centre, for images that are moved in one way each."""
    matrices = _turned(amounts["rotate"])
    # Shears are held at the upper left corner.
    corner = images.shape[-1] / 2
    matrices[:, 0, 1] += amounts["shear_x"]
    matrices[:, 0, 2] += amounts["shear_x"] * corner
    matrices[:, 1, 0] += amounts["shear_y"]
    matrices[:, 1, 2] += amounts["shear_y"] * corner
    matrices[:, 0, 2] -= np.trunc(amounts["translate_x"])
    matrices[:, 1, 2] -= np.trunc(amounts["translate_y"])
    return matrices


AUGMENTATIONS: Mapping[str, Callable[[Tensor, Any, int, Ids], Tensor]] = {
    "hflip": _hflip,
    "crop": _crop,
    "resized_crop": _resized_crop,
    "rotation": _rotation,
    "rand_augment": _rand_augment,
    "trivial_augment": _trivial_augment,
    "color_jitter": _color_jitter,
    "erasing": _erasing,
}
"""Each key of the grammar that changes images by themselves, in the order of application."""
