"""Shares of pictures: their interval, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959964
"""Standard deviations on either side that hold 95% of a normal distribution."""

ROUNDING = 1e-9
"""A share that is a threshold but for its last bits is at it."""


def share(hits: Sequence[bool | None]) -> float | None:
    """The share of True among True and False; None if there are neither."""
    told = [hit for hit in hits if hit is not None]
    return sum(told) / len(told) if told else None


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% confidence interval of a share of `count` pictures; of none it is everything."""
    if not count:
        return 0.0, 1.0
    z = Z
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def pictures_to_tell(share: float, limit: float) -> int | None:
    """How many pictures put the nearer end of a share's interval at the limit; None if no number does.

    The ends of Wilson's interval solve (end − share)² = z² end (1 − end) / n.
    """
    gap = abs(share - limit)
    return math.ceil(Z * Z * limit * (1 - limit) / gap**2) if gap > 1e-9 else None


def percent(share: float | None) -> str:
    """A share for people to read."""
    return "–" if share is None else f"{share:.1%}"


def interval_text(share: float | None, count: int) -> str:
    """The 95% interval of a share."""
    if share is None or not count:
        return ""
    low, high = interval(share, count)
    return f"{100 * low:.0f}–{100 * high:.0f}%"
