"""The table, the plot and the JSON of bench_methods.py."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from erasediff_lora.storage.files import atomic, write_text

MARKERS = {"adapter": "o", "full": "s"}
METRICS = ("unlearning_accuracy", "retain_accuracy", "frechet", "inversion")


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of an evaluation.json."""
    accuracy, distances = found["metrics"]["accuracy"], found["metrics"]["distances"]["own_samples"]
    result = {name: accuracy[name] for name in ("unlearning_accuracy", "retain_accuracy", "retain_accuracy_base")}
    result |= {"frechet": distances["erased"]["frechet"], "frechet_base": distances["base"]["frechet"]}
    result |= {"artifact_bytes": found["adapter"]["bytes"]}
    if "inversion" in found["attacks"]:
        result["inversion"] = found["attacks"]["inversion"]["models"]["erased"]["success"]
        result["inversion_base"] = found["attacks"]["inversion"]["models"]["base"]["success"]
    return result


def write(runs: Path, result_file: str, environment: dict[str, Any]) -> None:
    """Summarise every run in the folder, over concepts and seeds."""
    rows = [json.loads(file.read_text()) for file in sorted(runs.glob(f"*/{result_file}"))]
    tuning = {file.parent.name: json.loads(file.read_text()) for file in sorted(runs.glob(f"tuning/*/{result_file}"))}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["entry"]["method"], row["entry"]["mode"]), []).append(row)
    summary = [summarise(*key, group) for key, group in groups.items()]
    for line in summary:
        line["dominated_by"] = [f"{o['method']} ({o['mode']})" for o in summary if dominates(o, line)]
    text = markdown(summary)
    print(text)
    write_text(runs / "methods.md", text + "\n\n" + tuning_markdown(tuning) + "\n")
    report = {"environment": environment, "summary": summary, "runs": rows, "tuning": tuning}
    write_text(runs / "methods.json", json.dumps(report, indent=2) + "\n")
    if summary:
        plot(summary, runs / "methods.png")


def summarise(method: str, mode: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the runs of a method; times to the accuracy are over those that reached it."""

    def mean(*path: str) -> float | None:
        values = []
        for row in rows:
            value: Any = row
            for name in path:
                value = None if value is None else value.get(name)
            values += [] if value is None else [value]
        return statistics.mean(values) if values else None

    return {
        "method": method,
        "mode": mode,
        "runs": len(rows),
        "configuration": rows[0]["entry"]["configuration"],
        "reached": sum(row["reached"] is not None for row in rows),
        "seconds_to_reach": mean("reached", "processor_seconds"),
        "preparation_seconds": mean("preparation", "processor_seconds"),
        "seconds": mean("own_budget", "processor_seconds"),
        **{name: mean("own_budget", name) for name in METRICS},
        **{f"equal_time_{name}": mean("equal_time", name) for name in METRICS[:3]},
        "training_bytes": (mean("gradient_bytes") or 0) + (mean("optimizer_bytes") or 0),
        "peak_memory_bytes": mean("peak_memory_bytes"),
        "artifact_bytes": mean("own_budget", "artifact_bytes"),
    }


def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Better in all three of unlearning accuracy, retain accuracy and success of the attack."""
    if one["inversion"] is None or other["inversion"] is None:
        return False
    return (
        one["unlearning_accuracy"] > other["unlearning_accuracy"]
        and one["retain_accuracy"] > other["retain_accuracy"]
        and one["inversion"] < other["inversion"]
    )


def markdown(summary: Sequence[dict[str, Any]]) -> str:
    """A line a method."""
    lines = [
        "| method | trained | runs | UA ≥ 95% after | UA | RA | Fréchet | inversion | equal time: UA, RA | "
        "training memory | artifact | better in all three |",
        "|---" * 12 + "|",
    ]
    for row in summary:
        reached = "never"
        if row["seconds_to_reach"] is not None:
            missing = "" if row["reached"] == row["runs"] else f" ({row['reached']} of {row['runs']})"
            reached = f"{row['seconds_to_reach']:.1f} s{missing}"
        equal = f"{percent(row['equal_time_unlearning_accuracy'])}, {percent(row['equal_time_retain_accuracy'])}"
        cells = [
            *(row["method"], row["mode"], str(row["runs"]), reached),
            *(percent(row[name]) for name in METRICS[:2]),
            "–" if row["frechet"] is None else f"{row['frechet']:.1f}",
            percent(row["inversion"]),
            equal if row["equal_time_unlearning_accuracy"] is not None else "is the measure",
            f"{row['training_bytes'] / 2**20:.1f} MiB",
            f"{(row['artifact_bytes'] or 0) / 2**20:.1f} MiB",
            ", ".join(row["dominated_by"]) or "–",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tuning_markdown(tuning: dict[str, dict[str, Any]]) -> str:
    """A line a configuration that was tried."""
    lines = ["| method | trained | configuration | UA | RA | UA ≥ 95% after |", "|---" * 6 + "|"]
    for row in tuning.values():
        entry, point, reached = row["entry"], row["own_budget"], row["reached"]
        options = ", ".join(f"{name} {value}" for name, value in entry["configuration"].items()) or "recipe's"
        seconds = f"{reached['processor_seconds']:.1f} s" if reached else "never"
        accuracies = (percent(point["unlearning_accuracy"]), percent(point["retain_accuracy"]))
        lines.append("| " + " | ".join([entry["method"], entry["mode"], options, *accuracies, seconds]) + " |")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def colors_of(methods: Iterable[str]) -> dict[str, str]:
    """A colour for each, ours first and red."""
    ordered = sorted(set(methods), key=lambda method: (method != "erasediff", method))
    return dict(zip(ordered, ["tab:red", *(f"C{index}" for index in (0, 1, 2, 4, 5, 6, 7))], strict=False))


def plot(summary: Sequence[dict[str, Any]], file: Path) -> None:
    """Success of the attack and unlearning accuracy over retain accuracy; down right and up right are good."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = colors_of(row["method"] for row in summary)
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for axis, name, label in zip(
        axes, ("unlearning_accuracy", "inversion"), ("unlearning accuracy", "success of concept inversion"), strict=True
    ):
        for row in summary:
            if row[name] is None:
                continue
            look = {"marker": MARKERS[row["mode"]], "c": colors[row["method"]], "edgecolors": "white", "alpha": 0.85}
            axis.scatter(row["retain_accuracy"], row[name], s=90, **look)
        axis.set_xlabel("retain accuracy")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    for method, color in colors.items():
        axes[0].scatter([], [], c=color, label=method)
    for mode, marker in MARKERS.items():
        axes[0].scatter([], [], c="black", marker=marker, label=mode)
    figure.legend(loc="outside right center", frameon=False)
    with atomic(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
