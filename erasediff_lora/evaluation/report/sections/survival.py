"""What is left of the erasure after harmless changes of the model."""

from __future__ import annotations

from collections.abc import Sequence

from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.blocks import Block, Page, tables
from erasediff_lora.evaluation.results import asked, survived
from erasediff_lora.evaluation.survival.base import HEAD

INTRO = (
    "What is left of the erasure after harmless changes of the model. Base: the same done to the base without adapter;"
    " forgotten there is the share in which it does not show the concept."
)


def title(page: Page) -> str:
    return "Survival"


def blocks(page: Page) -> Sequence[Block]:
    nothing: Sequence[Sequence[str]] = ()
    rows: list[Sequence[str]] = []
    for part, found in survived(page.result):
        rows += asked(part, part.lines, found, not rows, otherwise=nothing)
    return tables([Table(INTRO, HEAD, rows, 2)], "survival") if rows else []
