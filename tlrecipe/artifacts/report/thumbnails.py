"""Small copies of the images that a report shows, kept while the images are in memory."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tlrecipe.artifacts.report.findings import Predictions, confusions, mistakes

if TYPE_CHECKING:
    from tlrecipe.data.pixels import Pixels

THUMBNAILS = "plots/thumbnails.json"
"""Where they are in a run directory: data URLs by the image's number in the split."""

MISTAKES = 24
"""Worst mistakes that a report shows."""
PAIRS = 8
"""Most confused pairs that a report shows."""
EXAMPLES = 4
"""Images for each pair."""

_SIDE = 128
_LOSSLESS_SIDE = 64
_BUDGET = 700_000


def shown(predictions: Predictions) -> list[int]:
    """Numbers of the images that a report shows, the most telling first, each once."""
    numbers = [index for pair in confusions(predictions, PAIRS, EXAMPLES) for index in pair.examples]
    return list(dict.fromkeys([*mistakes(predictions, MISTAKES), *numbers]))


def thumbnails(pixels: Pixels, numbers: Sequence[int]) -> dict[str, str]:
    """Copies of the images ``numbers``, the first ones of them that together have up to 700 kB."""
    found: dict[str, str] = {}
    used = 0
    for number in numbers:
        url = data_url(pixels.images[number].permute(1, 2, 0).numpy())
        used += len(url)
        if used > _BUDGET:
            break
        found[str(number)] = url
    return found


def data_url(pixels: NDArray[np.uint8]) -> str:
    """An image uint8 ``(h, w, 3)`` as a data URL, no larger than 128 pixels; tiny ones without loss."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    kind = "PNG" if max(image.size) <= _LOSSLESS_SIDE else "JPEG"
    out = io.BytesIO()
    image.save(out, kind, optimize=True, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
