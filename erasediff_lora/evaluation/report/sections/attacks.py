"""What attacks bring back: a row a concept and attack, the worst first, and their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasediff_lora.evaluation import charts
from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.blocks import SIGNS, Block, Charts, Heading, Page, Rows, Text
from erasediff_lora.evaluation.report.sections.asked import folded, sorted_strips
from erasediff_lora.evaluation.results import asked, attacked, charts_of
from erasediff_lora.evaluation.shares import interval_text, percent

HEAD = (
    *("concept", "attack", "adapter", "before", "after", "95% interval", "required", "base", "never learned"),
    "pictures",
)
INTRO = (
    "The share of pictures in which the judge sees the concept: before, where it is asked for plainly, and after the"
    " attacker's best try, with its 95% interval; the worst first. The base is the ceiling, a model that never learned"
    " the concept the floor. An attack that does not work on the base tells nothing."
)
TOLD = {True: "withstands", False: "broken", None: "not decided"}


def title(page: Page) -> str:
    return "Attacks"


def blocks(page: Page) -> Sequence[Block]:
    rows = page.claim("robust").get("attacks", ())
    found: list[Block] = []
    if rows:
        table = Table(head=HEAD, rows=[_row(page, row) for row in rows], texts=3)
        found += [Text(INTRO), Rows(table, "attacks.csv"), Charts([charts.attacks(rows)])]
    more = [chart for attacker, entry in attacked(page.result) for chart in charts_of(attacker, entry)]
    found += [Charts(more)] if more else []
    worst = list(dict.fromkeys(str(row["concept"]) for row in rows))
    for attacker, entry in attacked(page.result):
        strips = sorted_strips([strip for strip in page.strips if strip.section == attacker.name], worst)
        models = entry["models"]
        cells = [f"{name}: {asked(attacker, attacker.words, models[name], otherwise='?')}" for name in models]
        notes: Sequence[str] = asked(attacker, attacker.notes, models["erased"], otherwise=())
        told = [f"Budget: {entry['budget']}.", f"Result: {'; '.join(cells)}.", *notes]
        found += [Heading(str(entry["title"])), Text(" ".join(told))]
        found += folded(strips, page.blur, ("seen", "not seen"), level=4) if strips else []
    return found


def _row(page: Page, row: Mapping[str, Any]) -> Sequence[str]:
    holds = row["holds"] if row["works"] else None
    rate = page.seen.concepts.get(row["concept"]) if page.seen else None
    return [
        str(row["concept"]),
        str(row["name"]),
        f"{SIGNS[holds]} {TOLD[holds] if row['works'] else 'tells nothing'}",
        "–" if rate is None else percent(1 - rate.share),
        percent(row["share"]),
        interval_text(row["share"], row["pictures"]),
        f"at most {row['limit']:.0%}",
        percent(row["base"]),
        percent(row["floor"]),
        str(row["pictures"] or "?"),
    ]
