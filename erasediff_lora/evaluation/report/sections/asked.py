"""Pictures of the prompts that name what is to be gone."""

from __future__ import annotations

from collections.abc import Sequence

from erasediff_lora.evaluation.report.blocks import Block, Folded, Page, Strips, Text
from erasediff_lora.evaluation.report.strips import COLUMNS, MOST_STRIPS, Strip
from erasediff_lora.recipe.names import few

OPEN = 4
"""Strips that are shown at once; the others are folded."""
NAMED = 3
"""Concepts that a heading names."""
WORDS = {"forget": ("seen", "not seen"), "retain": ("as asked", "not as asked")}
"""Of a kind of prompts: for pictures in which the judge sees what it looks for, and for others."""


def title(page: Page) -> str:
    names = page.result["concepts"]
    return f"Pictures that ask for {few(names) if len(names) <= NAMED else 'what is to be gone'}"


def blocks(page: Page) -> Sequence[Block]:
    worst = [one["concept"] for one in page.claim("erased").get("concepts", ())]
    return pictures(page, "forget", worst)


def pictures(page: Page, section: str, worst: Sequence[str]) -> Sequence[Block]:
    """Strips without and with the adapter, those of the worst concepts first."""
    strips = sorted_strips([strip for strip in page.strips if strip.section == section], worst)
    if not strips:
        return []
    chosen = (
        f"The same prompts and seeds without and with the adapter: the first {COLUMNS} of each concept, whatever they"
        " show. Press a pair to enlarge it."
    )
    if len(strips) == MOST_STRIPS:
        chosen += f" The first {MOST_STRIPS} concepts are shown."
    if any(column.pictures and column.pictures[0].seen is not None for s in strips for column in s.columns):
        chosen += " Below each: what the judge says."
    return [Text(chosen), *folded(strips, page.blur, WORDS[section])]


def folded(strips: Sequence[Strip], blur: bool, words: tuple[str, str], level: int = 3) -> Sequence[Block]:
    """The first strips, and the others folded."""
    shown = OPEN if len(strips) > OPEN + 1 else OPEN + 1  # a single one is not worth folding
    found: list[Block] = [Strips(strips[:shown], blur, words, level)]
    if rest := strips[shown:]:
        found.append(Folded(f"{len(rest)} more concepts", [Strips(rest, blur, words, level)]))
    return found


def sorted_strips(strips: Sequence[Strip], worst: Sequence[str]) -> list[Strip]:
    """In the order of the concepts; others stay where they are, behind."""
    place = {concept: index for index, concept in enumerate(worst)}
    return sorted(strips, key=lambda strip: place.get(strip.concept, len(place)))
