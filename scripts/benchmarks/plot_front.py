"""The front of robustness: success of concept inversion over the harm to retained pictures, method by method.

    python scripts/benchmarks/plot_front.py docs/results/methods_demo.json docs/results/robust.json front.png

Harm is the Fréchet distance of retained pictures in units of the base's own between seeds. Every method is attacked
alike: the first restart counts, and for the robust preset the mean is over the concepts that the methods erased. Rings
are the single erasures of the robust preset, at the best of all its restarts. Methods beyond 1.3 times the base's
distance have wrecked the generator: they are printed, not drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from methods_table import MARKERS, colors_of

from erasediff_lora.storage.files import atomic

HARMFUL = 1.3


def methods_front(report: dict[str, Any]) -> dict[tuple[str, str], tuple[float, float]]:
    """(method, mode) -> means over its runs of harm and inversion."""
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in report["runs"]:
        found = run["own_budget"]
        if found.get("inversion") is not None:
            point = found["frechet"] / found["frechet_base"], found["inversion"]
            runs.setdefault((run["entry"]["method"], run["entry"]["mode"]), []).append(point)
    return {key: tuple(map(statistics.mean, zip(*points, strict=True))) for key, points in runs.items()}


def robust_front(report: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Concept, harm, inversion by the first restart, and by the best of all, an erasure each."""
    points = []
    for row in report["rows"]:
        tries = list(row["attacks"]["inversion"]["tries"].values())
        points.append((row["name"], row["frechet"]["erased"] / row["frechet"]["base"], tries[0], max(tries)))
    return points


def mean_over(points: list[tuple[str, float, float, float]], concepts: set[str]) -> tuple[float, float]:
    """Harm and inversion by the first restart, over the erasures of these concepts."""
    chosen = [(harm, first) for concept, harm, first, _ in points if concept in concepts]
    return tuple(map(statistics.mean, zip(*chosen, strict=True)))


def main() -> None:
    """Read both, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("methods", type=Path)
    parser.add_argument("robust", type=Path)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    report = json.loads(arguments.methods.read_text())
    methods, compared = methods_front(report), {run["entry"]["concept"] for run in report["runs"]}
    robust = robust_front(json.loads(arguments.robust.read_text()))
    colors = colors_of(method for method, _ in methods)
    figure, axis = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for (method, mode), (harm, inversion) in sorted(methods.items()):
        if harm > HARMFUL:
            print(f"not shown: {method}, {mode} at {harm:.2f} times the base's Fréchet distance")
            continue
        look: dict[str, Any] = {"marker": MARKERS[mode], "color": colors[method], "linestyle": ""}
        axis.plot(harm, inversion, markersize=10, markeredgecolor="white", label=f"{method}, {mode}", **look)
    harms, successes = [harm for _, harm, _, _ in robust], [best for *_, best in robust]
    axis.plot(harms, successes, "o", mfc="none", color="tab:red", label="erasediff, robust: best of its restarts, each")
    axis.plot(*mean_over(robust, compared), "*", color="tab:red", ms=18, mec="white", label="erasediff, robust")
    axis.axhline(0.1, color="black", linewidth=0.8, linestyle=":")
    axis.axvline(1.1, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("Fréchet distance of retained pictures / the base's own")
    axis.set_ylabel("success of concept inversion")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False)
    with atomic(arguments.file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


if __name__ == "__main__":
    main()
