"""What became what: what the judge sees for each concept that was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from erasediff_lora.evaluation.parts import Found, Table
from erasediff_lora.evaluation.shares import ROUNDING, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from erasediff_lora.evaluation.charts import Chart

MOST_SEEN = 40
"""Labels that nobody asked for, of which the most frequent are told apart."""
OTHER = "other"
MODELS = {"base": "became_base", "with adapter": "became"}
INTRO = (
    "What became what: the share of the pictures that ask for a concept (row) in which the judge sees another (column);"
    " first the base's, then the adapter's."
)


def tables(rows: Mapping[str, Found]) -> list[Table]:
    """The whole matrix, two rows a concept: what is not told of the base is left out."""
    seen = _seen(rows)
    cells = [
        [name, model, *(_cell(row[key], label, seen) for label in seen)]
        for name, row in rows.items()
        for model, key in MODELS.items()
        if row.get(key)
    ]
    return [Table(INTRO, ("asked for", "drawn by", *seen), cells, texts=2)] if cells else []


def chart(rows: Mapping[str, Found]) -> Chart:
    """The same with the adapter, as a field of colour."""
    from erasediff_lora.evaluation.charts import draw, heat_map

    told = {name: row for name, row in rows.items() if "became" in row}
    seen = _seen(rows)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        shares = [[_share(row["became"], label, seen) for label in seen] for row in told.values()]
        heat_map(axes, list(told), seen, shares, numbers=len(seen) <= 16)
        axes.set_xlabel("seen")
        axes.set_ylabel("asked for")

    listed = "; ".join(
        f"{name} became " + ", ".join(f"{label} {share:.1%}" for label, share in row["became"].items())
        for name, row in told.items()
        if "unlearning_accuracy" in row
    )
    alt = f"Asked for against seen, in per cent, with the adapter. {listed}"
    return draw("What is drawn in its place", alt, paint, len(told) + 3)


def _seen(rows: Mapping[str, Found]) -> list[str]:
    """The columns: what is asked for, what else is seen most often, and the rest."""
    asked = [name for name, row in rows.items() if "became" in row]
    found = Counter(
        label
        for row in rows.values()
        for key in MODELS.values()
        for label in row.get(key, ())
        if label not in asked and label != OTHER
    )
    return [*asked, *sorted(label for label, _ in found.most_common(MOST_SEEN)), OTHER]


def _share(became: Mapping[str, float], label: str, seen: list[str]) -> float:
    if label != OTHER:
        return became.get(label, 0.0)
    return max(1 - sum(became.get(name, 0.0) for name in seen if name != OTHER), 0.0)


def _cell(became: Mapping[str, float], label: str, seen: list[str]) -> str:
    """A share; what never happens is shown as quietly as it can be."""
    found = _share(became, label, seen)
    return percent(found) if found >= ROUNDING else "0"
