"""Several evaluations side by side: a page and a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation import charts
from erasediff_lora.evaluation.parts import Found, Part, Table
from erasediff_lora.evaluation.protocols.record import differences
from erasediff_lora.evaluation.report import environment
from erasediff_lora.evaluation.report.blocks import Block, Charts, Rows
from erasediff_lora.evaluation.report.sections.asked import WORDS, folded
from erasediff_lora.evaluation.report.strips import embedded_strips
from erasediff_lora.evaluation.results import asked, attacked, damage, measured, recognition, survived
from erasediff_lora.evaluation.score import score, spqr
from erasediff_lora.evaluation.survival.base import BEFORE
from erasediff_lora.evaluation.verdict import ANSWERS, damaged, read_judged
from erasediff_lora.storage.files import require_free, write_text

Row = tuple[str, Sequence[str | None]]


def compare(folders: Sequence[Path], output: Path, *, overwrite: bool = False) -> str:
    """Write a page that lays runs side by side.

    Args:
        folders: Runs, each with an evaluation.json.
        output: The HTML file.
        overwrite: Replace it.

    Returns:
        The numbers as a Markdown table, and what makes them less than comparable.

    Raises:
        UserError: If a run has no evaluation, or the output is there already.
    """
    require_free(output, "--output", overwrite=overwrite)
    runs = {name: read_judged(folder) for name, folder in zip(_names(folders), folders, strict=True)}
    places = dict(zip(runs, folders, strict=True))
    for name, folder in places.items():
        with _explained(folder):
            _page({name: runs[name]}, {name: folder})
    page, rows, notes = _page(runs, places)
    write_text(output, page, field="--output")
    return _markdown(list(runs), rows) + "".join(f"\n\n{note} Compare with care." for note in notes)


def _page(runs: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]) -> tuple[str, list[Row], list[str]]:
    """The page, and its rows and notes."""
    rows, notes = _rows(runs), _notes(runs)
    page = (
        environment()
        .get_template("comparison.html.jinja")
        .render(
            runs=runs,
            rows=_table(list(runs), rows),
            notes=notes,
            charts=Charts(found) if (found := _charts(runs)) else None,
            strips={name: _pictures(folder, runs[name]) for name, folder in folders.items()},
        )
    )
    return page, rows, notes


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Name the run whose evaluation.json, which may be a stranger's, is not as they are written here.

    Raises:
        UserError: Instead of whatever its content leads to.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise damaged(folder, error) from error


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
        seen, moved, robust = recognition(run), damage(run), run["verdict"][-1]
        rows = robust["attacks"]
        searched = robust["holds"] is False or any(row["searches"] and row["works"] for row in rows)
        if seen is not None and seen.retained is not None:
            erasure[name] = seen.retained, seen.forgotten
        if moved is not None and rows and searched:  # else the strongest attack is only the strongest that was tried
            robustness[name] = moved, max(rows[0]["share"] - (rows[0]["floor"] or 0.0), 0.0)
    found = [charts.erasure_front(erasure)] if erasure else []
    return found + ([charts.robustness_front(robustness)] if robustness else [])


def _rows(runs: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Label and cells of every number that some run has, as its metrics and attacks give them."""
    groups: list[list[Mapping[str, str | None]]] = [
        [{"to be erased": ", ".join(run["concepts"])} | _answers(run["verdict"]) for run in runs.values()],
        [{"protocol": protocol_of(run).get("name")} for run in runs.values()],
        [_given(measured(run)) for run in runs.values()],
        [_given(attacked(run)) for run in runs.values()],
        [_given(survived(run)) for run in runs.values()],
        [_scored(run) for run in runs.values()],
        _spqr(runs),
        [{"adapter, KiB": f"{run['adapter']['bytes'] / 1024:.0f}"} for run in runs.values()],
    ]
    rows = [
        (label, [cells.get(label) for cells in group])
        for group in groups
        for label in dict.fromkeys(label for cells in group for label in cells)
    ]
    return [(label, cells) for label, cells in rows if any(cell is not None for cell in cells)]


def _answers(claims: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {claim["claim"]: ANSWERS[claim["holds"]] for claim in claims}


def _given(parts: Iterable[tuple[Part, Found]]) -> dict[str, str | None]:
    """The rows of some metrics or attacks of a run."""
    nothing: Mapping[str, str | None] = {}
    given: dict[str, str | None] = {}
    for part, found in parts:
        given |= asked(part, part.rows, found, otherwise=nothing)
    return given


def _scored(run: Mapping[str, Any]) -> dict[str, str | None]:
    """The single score below its parts; nothing where one is missing."""
    found = score(run)
    if found.value is None:
        return {}
    parts = {f"score, {name}": f"{part.value:.3f}" for name, part in found.parts.items()}
    return {**parts, "score, harmonic mean of the four": f"{found.value:.3f}"}


def _spqr(runs: Mapping[str, Mapping[str, Any]]) -> list[Mapping[str, str | None]]:
    """The same by SPQR's own definition, whose quality is relative to the runs that are compared."""
    told = [_for_spqr(run) for run in runs.values()]
    if len(told) < 2 or not all(told):
        return [{} for _ in told]
    distances = [one["distance"] for one in told]
    scores = [spqr(**one, distances=distances) for one in told]
    return [{f"SPQR as its authors define it, {name}": f"{value:.3f}" for name, value in one.items()} for one in scores]


def _for_spqr(run: Mapping[str, Any]) -> dict[str, float]:
    """What SPQR is made of; nothing where something was not measured, harmless fine-tuning say."""
    try:
        metrics = run["metrics"]
        distances = metrics["distances"]
        frechet = distances["real_images" if "real_images" in distances else "own_samples"]["erased"]["frechet"]
        tuned = [
            1 - float(numbers["unlearning_accuracy"])
            for name in ("finetune", "finetune_full")
            for variant, numbers in run["survival"].get(name, {}).get("variants", {}).items()
            if variant != BEFORE
        ]
        return {
            "harmful": 1 - float(metrics["accuracy"]["unlearning_accuracy"]),
            "harmful_after": max(tuned),
            "clip_score": float(metrics["clip_score"]["retain"]["erased"]) / 100,
            "distance": float(frechet),
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def protocol_of(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """By which protocol it was measured; nothing of an earlier version."""
    found = run.get("protocol")
    if not isinstance(found, Mapping) or not isinstance(found.get("settings"), Mapping):
        return {}
    parts = found.get("parts")
    is_whole = isinstance(parts, Mapping) and all(isinstance(options, Mapping) for options in parts.values())
    return found if is_whole else {}


def _notes(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes the columns less than comparable."""
    notes = []
    protocols = [protocol_of(run) for run in runs.values()]
    if unlike := differences([one for one in protocols if one]):
        notes.append(f"The runs were not measured by the same protocol: {', '.join(unlike)}.")
    if not all(protocols) and any(protocols):
        notes.append("Some runs do not say by which protocol they were measured.")
    for label, key in (
        ("bases", "base_fingerprint"),
        ("judges", "judge"),
        ("samplings", "sampling"),
        ("seeds", "seeds"),
        ("picture sizes", "resolution"),
    ):
        if len({str(run.get(key)) for run in runs.values()}) > 1:
            notes.append(f"The runs have different {label}.")
    return notes


def _table(names: Sequence[str], rows: Sequence[Row]) -> Rows:
    cells = [[label, *("–" if cell is None else cell for cell in cells)] for label, cells in rows]
    return Rows(Table(head=("", *names), rows=cells), "comparison.csv")


def _pictures(folder: Path, run: Mapping[str, Any]) -> list[Block]:
    strips, blocks = embedded_strips(folder, run), list[Block]()
    for section, words in WORDS.items():
        shown = [strip for strip in strips if strip.section == section]
        blocks += folded(shown, bool(run.get("blur")), words) if shown else []
    return blocks


def _markdown(names: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [["", *names], ["---"] * (len(names) + 1)]
    lines += [[label, *("–" if cell is None else str(cell) for cell in cells)] for label, cells in rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
