"""Splits that the recipe asks for: a stratified validation split, a stratified subset.

Who goes where is decided by a hash of the image's name, so neither the order of files nor the presence
of other images has a say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tlrecipe.data.listing import Split
from tlrecipe.language.diagnostics import Diagnostic, TlrecipeError, capped
from tlrecipe.planning import randomness


def hold_out(train: Split, share: float, seed: int, classes: Sequence[str]) -> tuple[Split, Split]:
    """What remains of ``train``, and the validation split: ``share`` of each class, at least one image.

    Raises ``TlrecipeError`` (TLR405) with every class that cannot give one away and keep one.
    """
    rank, sizes = _ranks(train, seed, "val")
    problems = [
        Diagnostic(
            "TLR405",
            f"class `{name}` has {count} image: not enough for training and validation",
            ("data", "val"),
            "add images of it, bring a `val` folder, or set `data.val = 0`",
        )
        for name, count in zip(classes, sizes.tolist(), strict=True)
        if count < 2
    ]
    if problems:
        raise TlrecipeError(capped(problems))
    wanted = np.clip(np.rint(share * sizes), 1, sizes - 1)
    held = rank < wanted[train.labels]
    return train.take(~held), train.take(held)


def few(train: Split, per_class: int, seed: int) -> Split:
    """At most ``per_class`` images of each class; a smaller subset is part of a larger one."""
    rank, _ = _ranks(train, seed, "per_class")
    return train.take(rank < per_class)


def _ranks(split: Split, seed: int, stream: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each image's place in the hashed order of its class, and the size of each class."""
    hashes = np.array([randomness.key(seed, stream, item.name) for item in split], dtype=np.uint64)
    order = np.lexsort((hashes, split.labels))
    sizes = np.bincount(split.labels)
    ranks = np.empty(len(split), dtype=np.int64)
    ranks[order] = np.arange(len(split)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks, sizes
