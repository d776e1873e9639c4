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


def hold_out_groups(
    train: Split, groups: NDArray[np.int64], share: float, seed: int, classes: Sequence[str]
) -> tuple[Split, Split]:
    """As :func:`hold_out`, with ``groups`` (the group of each row of the source) left whole.

    Groups are gone through in hashed order, and one is held out where this brings the validation split
    nearer to ``share`` of each class. Raises ``TlrecipeError`` (TLR405) with every class that cannot be in
    both splits.
    """
    _, member = np.unique(groups[train.rows], return_inverse=True)
    counts = np.zeros((member.max() + 1, len(classes)), dtype=np.int64)
    np.add.at(counts, (member, train.labels), 1)
    wanted, left = share * counts.sum(0), counts.sum(0)
    held, chosen = np.zeros(len(classes)), np.zeros(len(counts), dtype=bool)
    # A group is called by its first image, so that its place does not depend on the other groups.
    names = [train[int(first)].name for first in np.unique(member, return_index=True)[1]]
    order = np.argsort(np.array([randomness.key(seed, "val", name) for name in names], dtype=np.uint64))
    for lacking in (False, True):
        for group in order[~chosen[order]]:
            more = counts[group]
            if lacking:
                nearer = bool(((held == 0) & (more > 0)).any())
            else:
                nearer = bool(np.sum((wanted - held - more) ** 2) < np.sum((wanted - held) ** 2))
            if nearer and not ((left - more == 0) & (left > 0)).any():
                chosen[group] = True
                held, left = held + more, left - more
    problems = [
        Diagnostic(
            "TLR405",
            f"class `{name}` cannot be in training and validation without tearing a group apart",
            ("data", "val"),
            "add groups that have it, name the splits in the manifest, or set `data.val = 0`",
        )
        for name, count in zip(classes, held.tolist(), strict=True)
        if count == 0
    ]
    if problems:
        raise TlrecipeError(capped(problems))
    return train.take(~chosen[member]), train.take(chosen[member])


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
