"""From the bytes of an image file to the network's input, in one way for everybody.

``decode`` (bytes to pixels) → ``fit_batch`` (to the network's size) → ``normalise`` (to floats).
Training, evaluation, prediction and export all go through these functions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from tlrecipe.data.reading import reason_of
from tlrecipe.planning.facts import Preprocessing


class BadImage(Exception):  # noqa: N818  (a finding about a file, often a value and not raised)
    """A file that is no usable image; ``reason`` says why, without the file's name."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


# --------------------------------------------------------------------------- bytes to pixels

_Opener = Callable[[BytesIO], ImageFile.ImageFile]

# A closed table, chosen by the first bytes: other decoders, among them those that start programs,
# are never reached. `Image.open` is not used because its own limit of pixels is a global variable.
_FORMATS: tuple[tuple[str, tuple[bytes, ...], _Opener], ...] = (
    ("JPEG", (b"\xff\xd8\xff",), JpegImagePlugin.jpeg_factory),
    ("PNG", (b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    ("GIF", (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ("BMP", (b"BM",), BmpImagePlugin.BmpImageFile),
    ("WEBP", (b"RIFF",), WebPImagePlugin.WebPImageFile),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ("PPM", (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImagePlugin.PpmImageFile),
)

# Pillow's modes in which these formats arrive and that have one meaning as 8-bit colour.
_PLAIN_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION, _TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC = 274, 258, 262

# Conversions hold several copies of an image. Huge ones take turns, so that many threads do not
# need many times the memory.
_HUGE_PIXELS = 1 << 24
_HUGE_TURN = threading.Lock()


TRAITS = ("grey", "palette", "16-bit", "CMYK", "transparent", "turned by EXIF", "decoded at a lower size")
"""What can be said of an image file beside its format and size; a bit each in :attr:`Facts.traits`."""


class Facts(NamedTuple):
    """What an image file is, before it becomes RGB of 8 bits."""

    format: str
    height: int
    """Rows in the file, before it is turned upright."""
    width: int
    traits: int
    """A bit for each of :data:`TRAITS`."""


def decode(data: bytes, p: Preprocessing) -> Tensor:
    """The pixels of an image file: what :func:`decode_with_facts` gives, without the facts."""
    return decode_with_facts(data, p)[0]


def decode_with_facts(data: bytes, p: Preprocessing) -> tuple[Tensor, Facts]:
    """The pixels of an image file as uint8 ``(3, H, W)``, upright, RGB, in channels-last memory.

    Formats are recognised by content. The first frame of an animation counts. EXIF orientation is
    applied; transparent pixels lie on ``p.background``; 16-bit grey is scaled by the range that the file
    declares; grey, 1-bit, palette and CMYK become RGB; colour profiles are not applied. JPEG files of
    more than four times the size that ``p`` needs are decoded at a half, quarter or eighth.

    Raises ``BadImage`` for everything else, and before decoding for more than ``p.max_pixels``.
    """
    if not data:
        raise BadImage("the file is empty")
    name, open_image = _format_of(data)
    try:
        image = open_image(BytesIO(data))
        width, height = image.size
        if width * height > p.max_pixels:
            raise BadImage(f"{width}×{height} exceeds data.max_pixels ({p.max_pixels:,})")
        with _HUGE_TURN if width * height > _HUGE_PIXELS else nullcontext():
            # Twice the size that is needed leaves the quality to the resize that follows.
            image.draft(None, (2 * p.resized, 2 * p.resized))
            image.load()
            turn = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
            smaller = image.size != (width, height)
            facts = Facts(name, height, width, _traits(image, turned=turn is not None, smaller=smaller))
            if name == "PNG" and _has_odd_transparent_colour(image, data):
                raise BadImage("a transparent colour in other than 8 bits a sample")
            rgb = _to_rgb(image, p.background)
            if turn is not None:
                rgb = rgb.transpose(turn)
            # The copy is writeable, which torch asks for.
            pixels = np.frombuffer(bytearray(rgb.tobytes()), np.uint8).reshape(rgb.height, rgb.width, 3)
    except BadImage:
        raise
    except Exception as error:  # decoders of hostile bytes raise whatever they like
        raise BadImage(f"not a sound {name} file: {reason_of(error)}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1), facts


def _traits(image: ImageFile.ImageFile, *, turned: bool, smaller: bool) -> int:
    found = (
        image.mode in ("1", "L", "LA") or image.mode.startswith("I"),
        image.mode in ("P", "PA"),
        image.mode.startswith("I"),
        image.mode == "CMYK",
        image.has_transparency_data,
        turned,
        smaller,
    )
    return sum(1 << place for place, there in enumerate(found) if there)


def _format_of(data: bytes) -> tuple[str, _Opener]:
    for name, starts, open_image in _FORMATS:
        if data.startswith(starts) and (name != "WEBP" or data[8:12] == b"WEBP"):
            return name, open_image
    raise BadImage(f"not an allowed format ({', '.join(name for name, _, _ in _FORMATS)})")


class Header(NamedTuple):
    """What an image file says of itself; width and height as stored, before EXIF orientation."""

    width: int
    height: int
    grey: bool
    """Grey, 1-bit or 16-bit."""


def header(data: bytes) -> Header:
    """The header of an image file, without decoding it. Raises ``BadImage`` for what is no image."""
    name, open_image = _format_of(data)
    try:
        image = open_image(BytesIO(data))
    except Exception as error:  # decoders of hostile bytes raise whatever they like
        raise BadImage(f"not a sound {name} file: {reason_of(error)}") from error
    return Header(*image.size, grey=image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"))


def _has_odd_transparent_colour(image: ImageFile.ImageFile, png: bytes) -> bool:
    # Pillow converts such pixels to 8 bits, but not the colour that it compares them with. Byte 24 is
    # the bit depth.
    return "transparency" in image.info and image.mode in ("L", "RGB") and png[24] != 8


def _to_rgb(image: ImageFile.ImageFile, background: tuple[int, int, int]) -> Image.Image:
    flat: Image.Image = image
    if image.mode.startswith("I"):
        flat = _eight_bits(image)
    elif image.mode not in _PLAIN_MODES:
        raise BadImage(f"pixels of type {image.mode} have no declared range")
    if flat.has_transparency_data:
        below = Image.new("RGBA", flat.size, (*background, 255))
        flat = Image.alpha_composite(below, flat.convert("RGBA"))
    return flat if flat.mode == "RGB" else flat.convert("RGB")


def _eight_bits(image: ImageFile.ImageFile) -> Image.Image:
    """Grey of more than eight bits, scaled from its declared range to 0…255 and rounded."""
    bits, inverted = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2[_TIFF_BITS_PER_SAMPLE][0]
        inverted = image.tag_v2.get(_TIFF_PHOTOMETRIC) == 0
        if image.mode == "I":
            raise BadImage(f"grey of signed or {bits}-bit integers has no declared range")
    top = 2**bits - 1
    values = np.asarray(image).astype(np.int64)
    grey = Image.fromarray(((values * 510 + top) // (2 * top)).astype(np.uint8))
    if inverted:
        grey = grey.point(lambda value: 255 - value)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


# --------------------------------------------------------------------------- pixels to the network's size


def fit_batch(images: Tensor, p: Preprocessing) -> Tensor:
    """uint8 ``(N, 3, H, W)`` to uint8 ``(N, 3, size, size)`` in channels-last memory, on the CPU.

    Resizes and cuts from the centre as ``p.crop_mode`` says, as torchvision's ``Resize`` and ``CenterCrop``
    and timm's evaluation transform do, with antialiasing and in integer arithmetic: each image's result is
    the same, to the bit, whatever batch it is in. Where the ends of the longer side are lost, what lies more
    than one shorter side away from the centre square is cut off first, so that a panorama costs no more
    than others.
    """
    height, width = images.shape[-2:]
    if p.crop_mode == "center":
        images = _centre(images, min(height, 3 * width), min(width, 3 * height))
        height, width = images.shape[-2:]
    shape = _resized_shape(height, width, p)
    images = images.contiguous(memory_format=torch.channels_last)
    if shape != (height, width):
        if p.interpolation == "nearest":
            images = F.interpolate(images, size=shape, mode="nearest-exact")
        else:
            images = F.interpolate(images, size=shape, mode=p.interpolation, antialias=True)
    found = _centre(images, min(shape[0], p.size), min(shape[1], p.size))
    return _laid_on(found, p).contiguous(memory_format=torch.channels_last)


def fit(image: Tensor, p: Preprocessing) -> Tensor:
    """:func:`fit_batch` for one image, ``(3, H, W)`` to ``(3, size, size)``."""
    return fit_batch(image[None], p)[0]


def fill_of(p: Preprocessing) -> tuple[int, ...]:
    """The colour around an image that does not fill the network's square."""
    return tuple(round(255 * value) for value in p.mean) if p.crop_mode == "border" else (0, 0, 0)


def _resized_shape(height: int, width: int, p: Preprocessing) -> tuple[int, int]:
    side = p.resized
    if p.crop_mode == "squash":
        return side, side
    if p.crop_mode == "border":
        ratio = max(height / side, width / side)
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    return (side, side * width // height) if height <= width else (side * height // width, side)


def _centre(images: Tensor, height: int, width: int) -> Tensor:
    top, left = round((images.shape[-2] - height) / 2), round((images.shape[-1] - width) / 2)
    return images[..., top : top + height, left : left + width]


def _laid_on(images: Tensor, p: Preprocessing) -> Tensor:
    """The images in the middle of the network's square; where there is a choice, nearer to its start."""
    height, width = images.shape[-2:]
    if (height, width) == (p.size, p.size):
        return images
    below = (
        torch.tensor(fill_of(p), dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(images), 1, p.size, p.size)
    )
    top, left = (p.size - height) // 2, (p.size - width) // 2
    below[..., top : top + height, left : left + width] = images
    return below


# --------------------------------------------------------------------------- pixels to floats


def normalise(
    images: Tensor, p: Preprocessing, *, dtype: torch.dtype = torch.float32, channels_last: bool = True
) -> Tensor:
    """uint8 ``(N, 3, S, S)`` to ``(images / 255 - mean) / std``, on the images' device.

    Computed in float32 as one multiply-add, then rounded to ``dtype``.
    """
    mean = torch.tensor(p.mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(p.std, dtype=torch.float64).view(1, 3, 1, 1)
    scale = (1 / (255 * std)).to(images.device, torch.float32)
    shift = (-mean / std).to(images.device, torch.float32)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    floats = images.to(torch.float32, memory_format=layout)
    return torch.addcmul(shift, floats, scale).to(dtype)
