"""In-domain and cross-domain retention of each concept: is it seen, and is it drawn as it was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasediff_lora.evaluation.parts import Found, Table
from erasediff_lora.evaluation.shares import percent, share

Kept = Sequence[tuple[bool | None, bool | None, bool | None]]
"""Of each picture whether all that was asked for is seen, the concept, and the other attributes."""
KINDS = {"in_domain_retain_accuracy": 1, "cross_domain_retain_accuracy": 2}
INTRO = (
    "Each retained concept by itself (IRA and CRA of UnlearnCanvas): in-domain, it is seen; cross-domain, what else its"
    " prompts ask for is seen. What lost most first."
)
HEAD = ("", "in-domain, base", "with adapter", "cross-domain, base", "with adapter", "pictures")


def numbers(before: Kept, after: Kept) -> dict[str, Any]:
    """Both shares of a concept, without the adapter under a name that ends in '_base'."""
    return {
        f"{name}{end}": share([row[index] for row in rows])
        for name, index in KINDS.items()
        for end, rows in (("", after), ("_base", before))
    }


def tables(rows: Mapping[str, Found]) -> list[Table]:
    """A row a concept; nothing where no prompt asks for more than its concept."""
    told = {name: row for name, row in rows.items() if row.get("cross_domain_retain_accuracy") is not None}
    if not told:
        return []
    order = sorted(told, key=lambda name: max(_loss(told[name], kind) for kind in KINDS), reverse=True)
    cells = [
        [
            name,
            *(percent(told[name].get(f"{kind}{end}")) for kind in KINDS for end in ("_base", "")),
            _count(told[name]),
        ]
        for name in order
    ]
    return [Table(INTRO, HEAD, cells)]


def _loss(row: Found, kind: str) -> float:
    return float((row.get(f"{kind}_base") or 0.0) - (row.get(kind) or 0.0))


def _count(row: Found) -> str:
    return str(row.get("pictures") or "?")
