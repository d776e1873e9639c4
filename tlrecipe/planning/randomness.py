"""All randomness of a run: hashes of (seed, phase, epoch, sample or step, stream).

Nothing here has state, so nothing about randomness is ever saved: any draw can be repeated from its
names alone, and one stream cannot move another.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def key(*parts: int | str) -> int:
    """A 64-bit key for the stream that ``parts`` name, such as ``key(seed, phase, epoch, "shuffle")``.

    The encoding is unambiguous: ``key(1)``, ``key("1")``, ``key("a", "b")`` and ``key("ab")`` differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        kind = b"s" if isinstance(part, str) else b"i"
        text = str(part).encode("utf-8", "surrogateescape")
        digest.update(b"%s%d:%s" % (kind, len(text), text))
    return int.from_bytes(digest.digest()[:8], "big")


def _hashed(key: int, ids: ArrayLike) -> NDArray[np.uint64]:
    """Output number ``id`` (0-based) of SplitMix64 seeded with ``key``, for each id.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    position = np.asarray(ids, dtype=np.int64).astype(np.uint64) + np.uint64(1)
    state = np.uint64(key) + position * _GOLDEN_GAMMA
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(key: int, ids: ArrayLike) -> NDArray[np.float64]:
    """One number in [0, 1) for each id, with 53 random bits; a function of ``(key, id)`` alone."""
    return (_hashed(key, ids) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, n: int) -> NDArray[np.int64]:
    """A random order of ``0 … n - 1``; a function of ``(key, n)`` alone."""
    return np.argsort(_hashed(key, np.arange(n)), kind="stable").astype(np.int64, copy=False)
