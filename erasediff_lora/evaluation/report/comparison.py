"""Several evaluations side by side: a page and a Markdown table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.report import charts, embedded_strips, environment, percent
from erasediff_lora.evaluation.verdict import excess, strongest_attack
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.run_folder import read_evaluation

Row = tuple[str, Callable[[Mapping[str, Any]], str | None]]


def compare(folders: Sequence[Path], output: Path, *, overwrite: bool = False) -> str:
    """Write a page that lays runs side by side.

    Args:
        folders: Runs, each with an evaluation.json.
        output: The HTML file.
        overwrite: Replace it.

    Returns:
        The numbers as a Markdown table.

    Raises:
        UserError: If a run has no evaluation, or the output is there already.
    """
    if output.exists() and not overwrite:
        raise UserError(Problem("--output", str(output), "exists already.", "Add --overwrite, or name another file."))
    runs = {name: read_evaluation(folder) for name, folder in zip(_names(folders), folders, strict=True)}
    table = [(label, [value(run) for run in runs.values()]) for label, value in _rows(runs)]
    rows = [(label, cells) for label, cells in table if any(cell is not None for cell in cells)]
    page = environment().get_template("comparison.html.jinja")
    write_text(
        output,
        page.render(
            runs=runs,
            rows=rows,
            notes=_notes(runs),
            charts=_charts(runs),
            strips={name: embedded_strips(folder, runs[name]) for name, folder in zip(runs, folders, strict=True)},
        ),
        field="--output",
    )
    return _markdown(list(runs), rows)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; with their parents' where two are alike."""
    names = [folder.resolve().name for folder in folders]
    names = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    if len(set(names)) < len(names):
        raise UserError(Problem("RUN", [str(f) for f in folders], "names a run twice.", "Name each run once."))
    return names


def _charts(runs: Mapping[str, Mapping[str, Any]]) -> list[charts.Chart]:
    """The fronts, of the runs that have the numbers."""
    erasure, robustness = {}, {}
    for name, run in runs.items():
        accuracy, distances = run["metrics"].get("accuracy"), run["metrics"].get("distances")
        if accuracy and accuracy["retain_accuracy"] is not None:
            erasure[name] = accuracy["retain_accuracy"], accuracy["unlearning_accuracy"]
        if distances and (strongest := strongest_attack(run["attacks"])) is not None:
            success = max(excess(run["attacks"][strongest]), 0.0)
            robustness[name] = distances["own_samples"]["erased"]["frechet"], success
    found = [charts.erasure_front(erasure)] if erasure else []
    return found + ([charts.robustness_front(robustness)] if robustness else [])


def _rows(runs: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Label and getter of every number that some run has."""

    def of(*path: str) -> Callable[[Mapping[str, Any]], Any]:
        def get(run: Mapping[str, Any]) -> Any:
            found: Any = run
            for key in path:
                found = found.get(key) if isinstance(found, Mapping) else None
            return found

        return get

    def share(*path: str) -> Callable[[Mapping[str, Any]], str | None]:
        return lambda run: None if (found := of(*path)(run)) is None else percent(found)

    def number(form: str, *path: str) -> Callable[[Mapping[str, Any]], str | None]:
        return lambda run: None if (found := of(*path)(run)) is None else form.format(found)

    rows: list[Row] = [
        ("erased", lambda run: ", ".join(run["concepts"])),
        ("unlearning accuracy", share("metrics", "accuracy", "unlearning_accuracy")),
        ("retain accuracy", share("metrics", "accuracy", "retain_accuracy")),
        ("retain accuracy of the base", share("metrics", "accuracy", "retain_accuracy_base")),
        ("in-domain retention", share("metrics", "accuracy", "in_domain_retain_accuracy")),
        ("cross-domain retention", share("metrics", "accuracy", "cross_domain_retain_accuracy")),
        ("Fréchet distance", number("{:.2f}", "metrics", "distances", "own_samples", "erased", "frechet")),
        ("Fréchet distance of the base", number("{:.2f}", "metrics", "distances", "own_samples", "base", "frechet")),
        ("features", of("metrics", "distances", "features")),
        ("structural similarity", number("{:.3f}", "metrics", "drift", "structural_similarity")),
    ]
    for name in dict.fromkeys(attack for run in runs.values() for attack in run["attacks"]):
        label = name.replace("_", " ")
        if name == "relearning":
            rows.append((f"{label}, steps", lambda run: _relearned(run)))
            continue
        rows.append((f"attack success, {label}", share("attacks", name, "models", "erased", "success")))
        rows.append((f"the same on the base, {label}", share("attacks", name, "models", "base", "success")))
    rows.append(("adapter, KiB", lambda run: f"{run['adapter']['bytes'] / 1024:.0f}"))
    return rows


def _relearned(run: Mapping[str, Any]) -> str | None:
    attack = run["attacks"].get("relearning")
    if attack is None:
        return None
    steps = attack["models"]["erased"]["steps"]
    return "not back" if steps is None else str(steps)


def _notes(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes the columns less than comparable."""
    notes = []
    for label, key in (
        ("bases", "base_fingerprint"),
        ("judges", "judge"),
        ("samplings", "sampling"),
        ("seeds", "seeds"),
    ):
        if len({str(run[key]) for run in runs.values()}) > 1:
            notes.append(f"The runs have different {label}.")
    return notes


def _markdown(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str | None]]]) -> str:
    lines = [["", *names], ["---"] * (len(names) + 1)]
    lines += [[label, *("–" if cell is None else str(cell) for cell in cells)] for label, cells in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
