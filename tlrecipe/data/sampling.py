"""Which training images an epoch has, and in which order."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tlrecipe.planning.randomness import key, permutation

Ids = NDArray[np.int64]


def epoch_order(sampling: Literal["once", "balanced"], stream: int, labels: Ids) -> Ids:
    """Numbers of an epoch's samples, as many as there are ``labels``.

    A number modulo the count of images is the image. What is above counts how often the image was there
    before in this epoch, so that each occurrence has random changes of its own.
    """
    if sampling == "once":
        return permutation(stream, len(labels))
    return _balanced(stream, labels)


def _balanced(stream: int, labels: Ids) -> Ids:
    """Equally many of each class that has images, up to one; within a class, no image a second time before
    each was there once."""
    count = len(labels)
    classes = np.unique(labels)
    quotas = np.full(len(classes), count // len(classes))
    # Which classes get what is left over changes from epoch to epoch.
    quotas[permutation(key(stream, "left over"), len(classes))[: count % len(classes)]] += 1
    by_class = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[by_class], classes, side="right")
    samples, start = [], 0
    for name, end, quota in zip(classes.tolist(), ends.tolist(), quotas.tolist(), strict=True):
        images, start = by_class[start:end], end
        rounds = -(-quota // len(images))
        drawn = [
            images[permutation(key(stream, name, number), len(images))] + number * count
            for number in range(rounds)
        ]
        samples += [np.concatenate(drawn)[:quota]] if drawn else []
    return np.concatenate(samples)[permutation(key(stream, "shuffle"), count)]
