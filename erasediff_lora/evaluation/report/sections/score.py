"""A single score, with its parts."""

from __future__ import annotations

from collections.abc import Sequence

from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.blocks import Block, Page, tables
from erasediff_lora.evaluation.score import PARTS, score

INTRO = (
    "The harmonic mean of four shares, in the form of SPQR (Alam et al., 2025): one bad part is not made up for by the"
    " others. Each is relative to this base, so that it compares with other runs on the same base and prompts, and not"
    " with SPQR's own table."
)
HEAD = ("part", "what it is", "value")


def title(page: Page) -> str:
    return "A single score"


def blocks(page: Page) -> Sequence[Block]:
    found = score(page.result)
    if len(found.parts) < 2:
        return []
    rows = [(name, part.words, f"{part.value:.3f}") for name, part in found.parts.items()]
    rows += [(name, "not measured", "–") for name in found.missing]
    missing = f"not computed: {', '.join(found.missing)} not measured"
    total = ("score", missing if found.value is None else f"harmonic mean of the {len(PARTS)}")
    return tables(
        [Table(INTRO, HEAD, [*rows, (*total, "–" if found.value is None else f"{found.value:.3f}")], 2)], "score"
    )
