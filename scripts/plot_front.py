"""The front of robustness: success of concept inversion over the harm to retained pictures, method by method.

    python scripts/plot_front.py docs/results/methods_demo.json docs/results/robust.json front.png

Harm is the Fréchet distance of retained pictures in units of the base's own between seeds. Every method is attacked
alike: the first restart counts. Rings are the single erasures of the robust preset, at the best of all its restarts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from methods_table import MARKERS, colors_of

from erasediff_lora.files import atomic


def methods_front(report: dict) -> dict[tuple[str, str], tuple[float, float]]:
    """(method, mode) -> means over its runs of harm and inversion."""
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in report["runs"]:
        found = run["own_budget"]
        if found.get("inversion") is not None:
            point = found["frechet"] / found["frechet_base"], found["inversion"]
            runs.setdefault((run["entry"]["method"], run["entry"]["mode"]), []).append(point)
    return {key: tuple(map(statistics.mean, zip(*points, strict=True))) for key, points in runs.items()}


def robust_front(report: dict) -> list[tuple[float, float, float]]:
    """Harm, inversion by the first restart, and by the best of all, an erasure each."""
    points = []
    for row in report["rows"]:
        tries = list(row["attacks"]["inversion"]["tries"].values())
        points.append((row["frechet"]["erased"] / row["frechet"]["base"], tries[0], max(tries)))
    return points


def main() -> None:
    """Read both, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("methods", type=Path)
    parser.add_argument("robust", type=Path)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    methods = methods_front(json.loads(arguments.methods.read_text()))
    robust = robust_front(json.loads(arguments.robust.read_text()))
    colors = colors_of(method for method, _ in methods)
    figure, axis = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for (method, mode), (harm, inversion) in sorted(methods.items()):
        look = {"marker": MARKERS[mode], "color": colors[method], "markeredgecolor": "white", "linestyle": ""}
        axis.plot(harm, inversion, markersize=10, label=f"{method}, {mode}", **look)
    harms, first, best = zip(*robust, strict=True)
    axis.plot(harms, best, "o", mfc="none", color="tab:red", label="erasediff, robust: best of 5 restarts, each")
    mean = statistics.mean(harms), statistics.mean(first)
    axis.plot(*mean, "*", color="tab:red", markersize=18, markeredgecolor="white", label="erasediff, robust")
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
