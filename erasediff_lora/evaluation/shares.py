"""Shares of pictures: their interval, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Pairs:
    """Pictures of the same prompts and seeds, without and with the adapter.

    Attributes:
        lost: How many are right without it only.
        gained: How many are right with it only.
        count: How many pairs there are.

    Raises:
        ValueError: If that cannot be.
    """

    lost: int
    gained: int
    count: int

    def __post_init__(self) -> None:
        if min(self.lost, self.gained) < 0 or not 0 < self.count >= self.lost + self.gained:
            raise ValueError(f"{self.lost} lost and {self.gained} gained are not of {self.count} pairs")

    @property
    def loss(self) -> float:
        """The share that is lost, less what is gained, in [-1, 1]."""
        return (self.lost - self.gained) / self.count

    def interval(self) -> tuple[float, float]:
        """Tango's 95% score interval of the loss (Statistics in Medicine 17, 1998).

        Where nothing is gained, its upper end is that of Wilson's interval.

        Its ends are where the loss lies Z standard deviations from what is assumed, given that.
        """
        return self._end(-1.0), self._end(1.0)

    def to_tell(self, limit: float) -> int | None:
        """How many pairs put the nearer end of the interval at the limit, as often lost and gained; None if none do."""
        gap = abs(self.loss - limit)
        return math.ceil(Z * Z * self._variance(limit) / gap**2) if gap > ROUNDING else None

    def _end(self, far: float) -> float:
        """The end of the interval on this side, by bisection."""
        near, limit = self.loss, Z * Z / self.count
        for _ in range(60):
            middle = (near + far) / 2
            inside = (self.loss - middle) ** 2 <= limit * self._variance(middle)
            near, far = (middle, far) if inside else (near, middle)
        return near

    def _variance(self, loss: float) -> float:
        """Of a pair, if the true loss were this: 2q + loss − loss², q the most likely share of gained ones.

        q is the greater root of 2q² + bq − c = 0, where the likelihood of the counts is greatest.
        """
        lost, gained = self.lost / self.count, self.gained / self.count
        b = (2 - lost + gained) * loss - lost - gained
        c = gained * loss * (1 - loss)
        q = (math.sqrt(max(b * b + 8 * c, 0.0)) - b) / 4
        return max(2 * q + loss - loss * loss, 0.0)


def percent(share: float | None) -> str:
    """A share for people to read."""
    return "–" if share is None else f"{share:.1%}"


def interval_text(share: float | None, count: int) -> str:
    """The 95% interval of a share."""
    if share is None or not count:
        return ""
    low, high = interval(share, count)
    return f"{100 * low:.0f}–{100 * high:.0f}%"
