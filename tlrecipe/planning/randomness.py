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


# At least 95 % of attempts succeed.
_ATTEMPTS = 16


def betas(key: int, ids: ArrayLike, alpha: float) -> NDArray[np.float64]:
    """A draw from Beta(alpha, alpha) for each id, as a ratio of gamma variates."""
    first, second = (_log_gammas(key, ids, alpha, number) for number in (0, 1))
    ratio: NDArray[np.float64] = 1 / (1 + np.exp(np.clip(second - first, -700, 700)))
    return ratio


def _log_gammas(stream: int, ids: ArrayLike, shape: float, number: int) -> NDArray[np.float64]:
    """Logarithms of draws from Gamma(shape, 1): small shapes give values that are no longer floats.

    Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26:363, 2000: the first
    of some attempts that is accepted, for ``shape + 1``, and the power of a uniform draw that corrects it.
    """

    def drawn(name: str) -> NDArray[np.float64]:
        return uniforms(key(stream, "gamma", number, name), ids)

    d = shape + 1 - 1 / 3
    result = np.full(np.shape(ids), np.log(d))
    for attempt in reversed(range(_ATTEMPTS)):
        radius = np.sqrt(-2 * np.log1p(-drawn(f"radius-{attempt}")))
        x = radius * np.cos(2 * np.pi * drawn(f"angle-{attempt}"))
        v = np.maximum(1 + x / np.sqrt(9 * d), 0) ** 3
        log_v = np.log(np.where(v > 0, v, 1))
        bound = x * x / 2 + d - d * v + d * log_v
        accepted = (v > 0) & (np.log1p(-drawn(f"accept-{attempt}")) < bound)
        result = np.where(accepted, np.log(d) + log_v, result)
    return result + np.log1p(-drawn("power")) / shape
