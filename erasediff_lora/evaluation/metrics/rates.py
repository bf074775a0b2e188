"""Shares beside the base's own, as evaluation.json has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erasediff_lora.evaluation.metrics.base import Rate
from erasediff_lora.evaluation.parts import Found
from erasediff_lora.evaluation.shares import ROUNDING, Pairs, share

Hits = Sequence[bool | None]
"""Of each picture whether it shows what is asked for; None if the judge cannot tell."""


def retention(before: Hits, after: Hits) -> dict[str, Any]:
    """Shares in which what is asked for is seen, and how many pictures could be judged.

    Args:
        before: Of the base's pictures.
        after: Of the same prompts and seeds with the adapter.
    """
    return {
        "retain_accuracy": share(after),
        "retain_accuracy_base": share(before),
        "pictures": sum(hit is not None for hit in after),
        "pictures_base": sum(hit is not None for hit in before),
    } | changes(before, after)


def changes(before: Hits, after: Hits) -> dict[str, Any]:
    """How often the same prompt and seed is right without the adapter only, and with it only."""
    pairs = list(zip(before, after, strict=True))
    return {"lost": pairs.count((True, False)), "gained": pairs.count((False, True))}


def rate_in(row: Found, number: str) -> Rate:
    """What a row says of a number; counts are 0 in older files.

    Raises:
        ValueError: If it contradicts itself.
    """
    base, count = row.get(f"{number}_base"), row.get("pictures", 0)
    return Rate(row[number], count, base, row.get("pictures_base", 0), pairs_in(row, row[number], base, count))


def pairs_in(row: Found, with_adapter: float | None, base: float | None, count: int) -> Pairs | None:
    """What stands of them in a row; None in older files.

    Raises:
        ValueError: If the shares say something else.
    """
    if "lost" not in row or with_adapter is None or base is None:
        return None
    pairs = Pairs(row["lost"], row["gained"], count)
    if abs(pairs.loss - (base - with_adapter)) > ROUNDING:
        raise ValueError(f"{pairs.lost} lost and {pairs.gained} gained do not make {base:.1%} to {with_adapter:.1%}")
    return pairs
