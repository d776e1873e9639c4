"""Operations on batches of bytes, with an amount of its own for each image.

Images are uint8 ``(B, 3, S, S)``, amounts are ``(B,)``. Each operation is, image by image, the function of
the same name in ``torchvision.transforms.v2.functional``, which takes one amount for a whole batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Amounts = NDArray[np.float64]

_GREY = (0.2989, 0.587, 0.114)
# What comes into view beside a moved image where it is not reflected.
FILL = 128


def per_image(amounts: Amounts) -> Tensor:
    """``(B,)`` as float32 ``(B, 1, 1, 1)``."""
    return torch.from_numpy(amounts.astype(np.float32))[:, None, None, None]


# --------------------------------------------------------------------------- colour


def brightness(images: Tensor, factors: Amounts) -> Tensor:
    return _bytes(images * per_image(factors))


def contrast(images: Tensor, factors: Amounts) -> Tensor:
    # In double precision, where the order of the sum, which is the batch's, does not matter.
    return _blend(images, _grey(images).double().mean((1, 2, 3), keepdim=True).float(), factors)


def saturation(images: Tensor, factors: Amounts) -> Tensor:
    return _blend(images, _grey(images), factors)


def sharpness(images: Tensor, factors: Amounts) -> Tensor:
    """The edge of one pixel stays as it is."""
    if min(images.shape[2:]) <= 2:
        return images
    kernel = torch.full((3, 1, 3, 3), 1 / 13)
    kernel[:, :, 1, 1] = 5 / 13
    floats = images.float()
    inner = floats[..., 1:-1, 1:-1]
    blurred = F.conv2d(floats, kernel, groups=3).round_()
    inner.add_((blurred - inner) * (1 - per_image(factors)))
    return _bytes(floats)


def hue(images: Tensor, turns: Amounts) -> Tensor:
    """``turns`` are shares of the circle, from -0.5 to 0.5."""
    rgb = images.float() / 255
    low, high = rgb.aminmax(dim=1, keepdim=True)
    spread = high - low
    red, green, blue = ((high - rgb) / torch.where(spread > 0, spread, 1)).unbind(1)
    angle = torch.where(rgb[:, 1] == high[:, 0], 2 + red - blue, 4 + green - red)
    angle = torch.where(rgb[:, 0] == high[:, 0], blue - green, angle)[:, None]
    # Smith, "Color gamut transform pairs", SIGGRAPH 1978, with one formula for the three channels.
    sector = torch.tensor([5.0, 3.0, 1.0])[None, :, None, None] + angle + 6 * per_image(turns)
    sector = sector.remainder_(6)
    away = torch.minimum(sector, 4 - sector).clamp_(0, 1)
    return (high - spread * away).mul_(256 - 1e-3).to(torch.uint8)


def posterize(images: Tensor, bits: NDArray[np.int64]) -> Tensor:
    masks = torch.from_numpy((256 - (1 << (8 - bits))).astype(np.uint8))
    return images & masks[:, None, None, None]


def solarize(images: Tensor, thresholds: Amounts) -> Tensor:
    return torch.where(images >= per_image(thresholds), 255 - images, images)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.float().unbind(1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).floor_()[:, None]


def _blend(images: Tensor, other: Tensor, factors: Amounts) -> Tensor:
    share = per_image(factors)
    return _bytes(images * share + other * (1 - share))


def _bytes(floats: Tensor) -> Tensor:
    return floats.clamp_(0, 255).to(torch.uint8)


# --------------------------------------------------------------------------- geometry


def affine(images: Tensor, matrices: NDArray[np.float64], *, reflect: bool = False) -> Tensor:
    """Each pixel of the result is looked up, bilinearly, at ``matrices @ (x, y, 1)``.

    ``matrices`` are ``(B, 2, 3)``, in pixels from the centre. Outside of the image lies its reflection, or
    grey.
    """
    side = images.shape[-1]
    along = torch.linspace(-(side - 1) / 2, (side - 1) / 2, side)
    m = torch.from_numpy((matrices / (side / 2)).astype(np.float32))[..., None, None]
    # Written out: a matrix product may take another order of summing for another size of batch.
    x, y = (m[:, row, 0] * along + m[:, row, 1] * along[:, None] + m[:, row, 2] for row in (0, 1))
    grid = torch.stack([x, y], dim=3)
    floats = images.float()
    if reflect:
        return _sampled(floats, grid, "reflection").round_().to(torch.uint8)
    # Shifted so that what lies outside, which is zero, means grey.
    return (_sampled(floats - FILL, grid, "zeros") + FILL).round_().to(torch.uint8)


def crop_and_resize(images: Tensor, boxes: NDArray[np.int64]) -> Tensor:
    """The boxes, ``(B, 4)`` as left, top, width and height in pixels, each enlarged to the whole image."""
    side = images.shape[-1]
    steps = (np.arange(side) + 0.5) / side
    place, extent = boxes[:, None, :2], boxes[:, None, 2:]
    # Positions of pixel centres that do not leave the box: what is beside it has no influence.
    inside = np.clip(steps[None, :, None] * extent, 0.5, extent - 0.5) + place
    x, y = torch.from_numpy((2 * inside / side - 1).astype(np.float32)).unbind(2)
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=3)
    return _sampled(images.float(), grid, "border").round_().to(torch.uint8)


def _sampled(images: Tensor, grid: Tensor, padding: str) -> Tensor:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def inside_boxes(boxes: NDArray[np.int64], side: int) -> Tensor:
    """Which pixels lie in the boxes (left, top, width, height), bool ``(B, 1, S, S)``."""
    along = np.arange(side)
    left, top, width, height = (column[:, None] for column in boxes.T)
    columns = (along >= left) & (along < left + width)
    rows = (along >= top) & (along < top + height)
    return torch.from_numpy(rows[:, None, :, None] & columns[:, None, None, :])
