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

INK = "#010203"
"""Written by matplotlib, and replaced by the colour of the page's text."""
BASE, ERASED, FLOOR, ACCENT = "#8a8f98", "#2f7fd1", "#c98a1b", "#c2483d"
COLOURS = {"base": BASE, "erased": ERASED, "never learned": FLOOR}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "erasediff-lora",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
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


def attacks(found: Mapping[str, Any]) -> Chart:
    """Success of each attack on each model."""
    names = list(found)
    models = list(dict.fromkeys(model for attack in found.values() for model in attack["models"]))
    values = {model: [found[name]["models"].get(model, {}).get("success") for name in names] for model in models}

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        bars(axes, [name.replace("_", " ") for name in names], values)
        axes.set_xlabel("pictures with the concept, %")

    listed = "; ".join(
        f"{name.replace('_', ' ')}: " + ", ".join(f"{model} {words(values[model][index])}" for model in models)
        for index, name in enumerate(names)
    )
    return draw("Attacks", f"Share of pictures in which the concept is back. {listed}", paint, 1.6 * len(names))


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
        points: Run -> (Fréchet distance of retain pictures, success of the strongest attack).
    """
    scaled = {name: (distance, 100 * success) for name, (distance, success) in points.items()}
    labels = "Fréchet distance of retained pictures", "strongest attack, %"
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
            if label.endswith("%"):
                low = max(low, -high / 10)  # room for a name below 0, and no more
                limit(low, max(100.3, 100 + (100 - low) / 20) if high > 100 else high)

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


def bars(axes: Axes, names: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> None:
    """Groups of horizontal bars, first name on top."""
    height = 0.8 / len(values)
    for number, (model, row) in enumerate(values.items()):
        places = [index + (number - (len(values) - 1) / 2) * height for index in range(len(names))]
        axes.barh(places, [per_cent(value) for value in row], height, label=model, color=COLOURS.get(model, ACCENT))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
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
