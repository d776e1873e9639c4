"""Confidence intervals of shares: one formula for a run's metrics, its report and comparisons."""

from __future__ import annotations

from math import sqrt

Z95 = 1.959964
"""Standard errors on either side of a value that hold 95 % of a normal distribution."""


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share of ``count`` trials (Wilson, JASA 22:209, 1927)."""
    centre = (share + Z95 * Z95 / (2 * count)) / (1 + Z95 * Z95 / count)
    half = Z95 * sqrt(share * (1 - share) / count + Z95 * Z95 / (4 * count * count))
    half /= 1 + Z95 * Z95 / count
    return max(0.0, centre - half), min(1.0, centre + half)
