"""A first look at a data set: its listing, and the headers of some of its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tlrecipe.data.listing import Listing
from tlrecipe.data.preprocess import BadImage, Header, header
from tlrecipe.planning.strategy import Survey

_SAMPLE = 200


def survey(listing: Listing) -> Survey:
    """Look at a listing whose validation split, if it has one, is the source's own.

    At most 200 training images are opened, evenly over all classes, and none is decoded.
    """
    train = listing.splits["train"]
    counts = Counter(train.labels.tolist())
    headers, unusable = [], 0
    chosen = np.unique(np.linspace(0, len(train) - 1, min(_SAMPLE, len(train))).astype(int))
    for index in chosen.tolist():
        try:
            headers.append(header(listing.read(train[index])))
        except (BadImage, OSError):
            unusable += 1
    return Survey(
        classes={name: counts[label] for label, name in enumerate(listing.info.classes)},
        counts={split: len(images) for split, images in listing.splits.items()},
        typical=_typical(headers),
        grey=2 * sum(found.grey for found in headers) > len(headers),
        sampled=len(chosen),
        unusable=unusable,
    )


def _typical(headers: Sequence[Header]) -> tuple[int, int] | None:
    """Width and height of the image whose shorter side is the median."""
    by_side = sorted(headers, key=lambda found: min(found.width, found.height))
    return by_side[len(by_side) // 2][:2] if by_side else None
