"""Pinpoint retention: what is kept near to what is forgotten, where erasers fail first, and of the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from erasediff_lora.evaluation.metrics.base import Rate
from erasediff_lora.evaluation.metrics.rates import Hits, rate_in, retention
from erasediff_lora.evaluation.parts import Found, Table
from erasediff_lora.evaluation.shares import interval_text, percent

SHOWN = 40
"""Neighbours in the report, the ones that lost most; evaluation.json has all."""
HEAD = ("base", "with adapter", "95% interval", "pictures")
INTRO = (
    "Pinpoint retention: the words nearest to what is forgotten (retain.neighbours), and all else that is to stay. All"
    " that is asked for is seen."
)


def pinpoint(
    near: Mapping[str, Sequence[str]],
    asked: Sequence[str | None],
    before: Hits,
    after: Hits,
    labels: Collection[str],
) -> dict[str, Any]:
    """The numbers of both kinds, and of each neighbour; empty where there are no neighbours.

    Args:
        near: Neighbour -> the forgotten concepts that it is near to.
        asked: The concept that each picture was asked for.
        before: Of the base's pictures.
        after: Of the same prompts and seeds with the adapter.
        labels: What the judge can name.
    """
    if not near:
        return {}

    def of(rows: Sequence[int]) -> dict[str, Any]:
        return retention([before[row] for row in rows], [after[row] for row in rows])

    told = {word: [row for row, name in enumerate(asked) if name == word] for word in near if word in labels}
    return {
        "neighbours": {
            "near": of([row for rows in told.values() for row in rows]),
            "far": of([row for row, name in enumerate(asked) if name not in near]),
            "words": {word: {"near_to": list(near[word])} | of(rows) for word, rows in told.items() if rows},
            "unjudged": [word for word in near if word not in labels],
            "undrawn": [word for word, rows in told.items() if not rows],
        }
    }


def tables(found: Found) -> list[Table]:
    """Near and far, and each neighbour, what lost most on top."""
    neighbours = found.get("neighbours")
    if not neighbours:
        return []
    both = [
        [label, *_cells(neighbours[kind])]
        for kind, label in (("near", "near"), ("far", "the rest"))
        if neighbours[kind]["pictures"]
    ]
    words = sorted(neighbours["words"].items(), key=lambda item: _loss(item[1]), reverse=True)
    each = [[word, ", ".join(row["near_to"]), *_cells(row)] for word, row in words[:SHOWN]]
    more = f" {len(words) - SHOWN} that lost less are in evaluation.json." if len(words) > SHOWN else ""
    return [
        Table(INTRO, ("", *HEAD), both),
        Table(
            f"Each neighbour, what lost most first.{more}{_left_out(neighbours)}", ("", "near to", *HEAD), each, texts=2
        ),
    ]


def _left_out(neighbours: Found) -> str:
    reasons = (("unjudged", "the judge has no label for"), ("undrawn", "evaluation.retain_samples is too low for"))
    texts = [f"{why} {', '.join(neighbours[kind])}" for kind, why in reasons if neighbours[kind]]
    return f" Left out: {'; '.join(texts)}." if texts else ""


def _cells(row: Found) -> list[str]:
    shares = percent(row["retain_accuracy_base"]), percent(row["retain_accuracy"])
    return [*shares, interval_text(row["retain_accuracy"], row["pictures"]), str(row["pictures"])]


def _loss(row: Found) -> float:
    return float((row["retain_accuracy_base"] or 0.0) - (row["retain_accuracy"] or 0.0))


def rows(found: Found) -> dict[str, str | None]:
    """For comparisons."""
    neighbours = found.get("neighbours")
    if not neighbours or neighbours["near"]["retain_accuracy"] is None:
        return {}
    near = neighbours["near"]
    return {
        "pinpoint retention": percent(near["retain_accuracy"]),
        "pinpoint retention of the base": percent(near["retain_accuracy_base"]),
    }


def rates(found: Found) -> dict[str, Rate]:
    """'near' and 'far', as far as there are numbers."""
    neighbours = found.get("neighbours") or {}
    shares = {kind: neighbours[kind] for kind in ("near", "far") if kind in neighbours}
    return {kind: rate_in(row, "retain_accuracy") for kind, row in shares.items() if row["retain_accuracy"] is not None}
