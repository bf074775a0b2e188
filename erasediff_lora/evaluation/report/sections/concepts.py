"""What is told of each concept, what was left out, and the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.blocks import SIGNS, Block, Folded, Items, Page, Rows, Text
from erasediff_lora.evaluation.shares import interval, percent
from erasediff_lora.evaluation.verdict import ANSWERS, RULES
from erasediff_lora.recipe.names import few

HEAD = ("concept", "erased", "base shows it", "still seen", "95% interval", "pictures", "robust", "strongest attack")
INTRO = (
    "The worst first. Base shows it, still seen: the share of the pictures that ask for the concept in which the judge"
    " sees it, without and with the adapter. Strongest attack: what it brings back."
)
CLAIMS = ("erased", "robust")
"""Those that are about each forgotten concept."""


def title(page: Page) -> str:
    return "What decides"


def blocks(page: Page) -> list[Block]:
    result = page.result
    found: list[Block] = []
    if len(result["concepts"]) > 1 and page.seen is not None:
        found += [Text(INTRO), Rows(Table(head=HEAD, rows=_rows(page), texts=2), "concepts.csv")]
    found += _left_out(result)
    return [*found, _folded_reasons(result), _folded_rules()]


def _rows(page: Page) -> list[Sequence[str]]:
    """A row a concept, in the order of the claim that fails, or else of *erased*."""
    erased, robust = ({one["concept"]: one for one in page.claim(name).get("concepts", ())} for name in CLAIMS)
    attacks: dict[str, Mapping[str, Any]] = {}
    for row in page.claim("robust").get("attacks", ()):
        attacks.setdefault(row["concept"], row)
    order = [*erased]
    if page.claim("erased").get("holds") and not page.claim("robust").get("holds"):
        order = [name for name in robust if name in erased] + [name for name in erased if name not in robust]
    return [_row(page, name, erased[name]["holds"], robust.get(name), attacks.get(name)) for name in order]


def _row(
    page: Page, name: str, holds: bool | None, withstands: Mapping[str, Any] | None, worst: Mapping[str, Any] | None
) -> Sequence[str]:
    rate = page.seen.concepts.get(name) if page.seen else None
    spread = ""
    if rate is not None and rate.pictures:
        low, high = interval(rate.share, rate.pictures)
        spread = f"{100 * (1 - high):.0f}–{100 * (1 - low):.0f}%"
    return [
        name,
        answer(holds),
        "–" if rate is None or rate.base is None else percent(1 - rate.base),
        "–" if rate is None else percent(1 - rate.share),
        spread,
        "–" if rate is None else str(rate.pictures or "?"),
        answer(withstands["holds"]) if withstands else "–",
        f"{worst['name']} {percent(worst['share'])} of {worst['pictures']}" if worst else "none",
    ]


def answer(holds: bool | None) -> str:
    """Whether something holds, as a cell."""
    return f"{SIGNS[holds]} {ANSWERS[holds]}"


def _left_out(result: Mapping[str, Any]) -> list[Block]:
    items = [(name.replace("_", " "), reason) for name, reason in result["refused"].items()]
    if unjudged := result.get("unjudged"):
        items.append(("Not counted, since the judge has no label for it", few(unjudged)))
    return [Text("Left out:"), Items(items)] if items else []


def _folded_reasons(result: Mapping[str, Any]) -> Folded:
    """The claims' sentences about each concept, where they have several."""
    told = {claim["claim"]: claim["concepts"] for claim in result["verdict"] if len(claim["concepts"]) > 1}
    items = [(f"{SIGNS[one['holds']]} {claim}, {one['concept']}", one["text"]) for claim in told for one in told[claim]]
    return Folded("The reasons, concept by concept", [Items(items)] if items else [])


def _folded_rules() -> Folded:
    note = (
        "A claim fails where the share itself is on the wrong side, and is not decided where the numbers cannot tell."
    )
    return Folded("The rules of the verdict", [Items(list(RULES.items())), Text(note)])
