"""The report's charts: matplotlib's SVG, whose ink follows the reader's light or dark scheme."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from erasediff_lora.evaluation.shares import interval

INK = "#010203"
"""Written by matplotlib, and replaced by the colour of the page's text."""
BASE, ERASED, FLOOR, ACCENT = "#8a8f98", "#2f7fd1", "#c98a1b", "#c2483d"
COLOURS = {"base": BASE, "erased": ERASED, "never learned": FLOOR}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "erasediff-lora",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names come from files: what stands between two $ is no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
UPRIGHT, ROOM = 12, 200
"""From so many columns on their names stand upright; points that all of them have together."""
SCHEME = "<style>svg{color:#1c1e21}@media (prefers-color-scheme:dark){svg{color:#e4e6ea}}</style>"


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: Of the figure.
        alt: What it shows, in words.
        uri: The picture as a data URI.
    """

    title: str
    alt: str
    uri: str


def attacks(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """What each attack brings back of each concept; a mark stands at what is permitted.

    Args:
        rows: Of the verdict, an `AttackRow` each.
    """
    concepts = list(dict.fromkeys(str(row["concept"]) for row in rows))
    listed = "; ".join(
        f"{row['concept']}, {row['name']}: base {words(row['base'])}, erased {words(row['share'])}, at most"
        f" {words(row['limit'])} permitted"
        for row in rows
    )
    alt = f"Share of pictures in which the concept is back. {listed}"
    if len(concepts) > 1:
        names = list(dict.fromkeys(str(row["name"]) for row in rows))
        cells = {(str(row["concept"]), str(row["name"])): row for row in rows}
        return draw("Attacks", alt, lambda figure: _attack_map(figure, concepts, names, cells), len(concepts) + 3)
    return draw("Attacks", alt, lambda figure: _attack_bars(figure, rows), 1.8 * len(rows))


def _attack_bars(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    axes = figure.add_subplot()
    models = {"base": "base", "erased": "share", "never learned": "floor"}
    values = {
        model: [row[key] for row in rows] for model, key in models.items() if any(row[key] is not None for row in rows)
    }
    bars(axes, [str(row["name"]) for row in rows], values, {"erased": [row["pictures"] for row in rows]})
    for place, row in enumerate(rows):
        axes.vlines(100 * row["limit"], place - 0.45, place + 0.45, colors=ACCENT, linestyles="dashed", linewidth=1)
    axes.plot([], [], "--", color=ACCENT, linewidth=1, label="permitted")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    axes.set_xlabel("pictures with the concept, %")


def _attack_map(
    figure: Figure, concepts: Sequence[str], names: Sequence[str], cells: Mapping[tuple[str, str], Mapping[str, Any]]
) -> None:
    """A field for each concept and attack; what is above the permitted share is framed."""
    axes = figure.add_subplot()
    found = [[cells.get((concept, name)) for name in names] for concept in concepts]
    heat_map(axes, concepts, names, [[None if row is None else row["share"] for row in line] for line in found])
    for y, line in enumerate(found):
        for x, row in enumerate(line):
            if row is not None and row["works"] and row["share"] > row["limit"]:
                axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor=ACCENT, linewidth=1.5))
    axes.set_xlabel("erased, % of pictures; framed: more than is permitted")


def heat_map(
    axes: Axes,
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    numbers: bool = True,
) -> None:
    """Shares as a field of colour that lets the page shine through, so that its ink stays legible, dark or light."""
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            if share is not None and share >= 0.005:
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=ERASED, alpha=0.1 + 0.45 * share, linewidth=0))
            if numbers:
                text = "–" if share is None else f"{100 * share:.0f}" if share >= 0.005 else ""
                axes.text(x, y, text, ha="center", va="center", size=7)
    many = len(columns) > UPRIGHT
    axes.set_xticks(
        range(len(columns)), columns, rotation=90 if many else 60, ha="right", va="center" if many else "baseline",
        rotation_mode="anchor", size=min(9, ROOM / len(columns)),
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def training(lines: Sequence[Mapping[str, Any]], curves: Mapping[str, str]) -> Chart:
    """The quantities of the training log.

    Args:
        lines: Of the log.
        curves: Quantity -> label, as the objective has them.
    """
    shown = {name: label for name, label in curves.items() if any(line.get(name) is not None for line in lines)}

    def paint(figure: Figure) -> None:
        all_axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, label) in zip(all_axes, shown.items(), strict=True):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            axes.plot(*zip(*points, strict=True), color=ERASED, linewidth=0.9)
            axes.set_title(label, size=9, loc="left", color=INK)
        all_axes[-1].set_xlabel("step")

    listed = "; ".join(
        f"{label} from {values[0]:.3g} to {values[-1]:.3g}"
        for name, label in shown.items()
        if (values := [line[name] for line in lines if line.get(name) is not None])
    )
    return draw("Training", f"By step: {listed}", paint, 3.2 * len(shown))


def erasure_front(points: Mapping[str, tuple[float, float]]) -> Chart:
    """Erasure against retention, one point a run.

    Args:
        points: Run -> (retain accuracy, unlearning accuracy).
    """
    per_cent = {name: (100 * retained, 100 * erased) for name, (retained, erased) in points.items()}
    return _front("Erasure against retention", per_cent, ("retained, %", "forgotten, %"), better=1)


def robustness_front(points: Mapping[str, tuple[float, float]]) -> Chart:
    """What the strongest attack brings back, against what it costs the other pictures; one point a run.

    Args:
        points: Run -> (Fréchet distance of retain pictures in multiples of the base's, success of the strongest
            attack).
    """
    scaled = {name: (distance, 100 * success) for name, (distance, success) in points.items()}
    labels = "Fréchet distance of retained pictures, times the base's", "strongest attack, %"
    return _front("Robustness against damage", scaled, labels, better=-1)


def _front(title: str, points: Mapping[str, tuple[float, float]], labels: tuple[str, str], better: int) -> Chart:
    """Points in two quantities of which more (1) or less (-1) is better; the front is joined."""
    front = pareto_front({name: (better * x, better * y) for name, (x, y) in points.items()})

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        joined = sorted((points[name] for name in front), key=lambda point: point[1], reverse=better > 0)
        axes.step([x for x, _ in joined], [y for _, y in joined], where="post", color=BASE, linewidth=0.9)
        for place in dict.fromkeys(points.values()):
            names = [name for name, point in points.items() if point == place]
            axes.plot(*place, "o", color=ERASED if names[0] in front else BASE)
            axes.annotate(", ".join(names), place, xytext=(0, -12), textcoords="offset points", size=8, ha="center")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(0.25)
        for label, limits, limit in (
            (labels[0], axes.get_xlim(), axes.set_xlim),
            (labels[1], axes.get_ylim(), axes.set_ylim),
        ):
            low, high = limits
            # From 0, so that small differences look small, with room for a name below.
            high = max(100.3, high) if label.endswith("%") and better > 0 else high
            limit(min(low, -high / 12), high)

    listed = "; ".join(f"{name}: {labels[0]} {x:.1f}, {labels[1]} {y:.1f}" for name, (x, y) in points.items())
    corner = "up and right" if better > 0 else "down and left"
    return draw(title, f"Best is {corner}; on the front: {', '.join(front)}. {listed}", paint, 8)


def pareto_front(points: Mapping[str, tuple[float, ...]]) -> list[str]:
    """The names that no other beats: no worse in every number and better in one."""
    return [
        name
        for name, mine in points.items()
        if not any(
            all(a >= b for a, b in zip(other, mine, strict=True)) and tuple(other) != tuple(mine)
            for other in points.values()
        )
    ]


def bars(
    axes: Axes,
    names: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    pictures: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Groups of horizontal bars, first name on top.

    Args:
        axes: Where.
        names: Of the groups.
        values: Model -> a share for each group.
        pictures: Model -> how many pictures each share is of, for its 95% interval.
    """
    height = 0.8 / len(values)
    for number, (model, row) in enumerate(values.items()):
        places = [index + (number - (len(values) - 1) / 2) * height for index in range(len(names))]
        axes.barh(places, [per_cent(value) for value in row], height, label=model, color=COLOURS.get(model, ACCENT))
        for place, value, count in zip(places, row, (pictures or {}).get(model, ()), strict=False):
            if value is not None and count:
                low, high = interval(value, count)
                axes.hlines(place, 100 * low, 100 * high, colors=INK, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(values))


def per_cent(share: float | None) -> float:
    """A share on an axis; a gap where there is none."""
    return float("nan") if share is None else 100 * share


def words(share: float | None) -> str:
    """A share in an alternative text."""
    return "not measured" if share is None else f"{share:.1%}"


def draw(title: str, alt: str, paint: Callable[[Figure], None], rows: float) -> Chart:
    """A chart.

    Args:
        title: Of the figure.
        alt: What it shows, in words.
        paint: Draws into the figure.
        rows: How many rows of text the figure is as high as.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, min(9.0, max(2.4, 1.1 + 0.3 * rows))), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue().replace(INK, "currentColor")
    svg = svg[svg.index("<svg") :].replace(">", f">{SCHEME}", 1)
    return Chart(title, alt, "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode())
