"""How the adapter was trained, and on what."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erasediff_lora.data.set_report import read_data_report
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation import charts
from erasediff_lora.evaluation.charts import Chart
from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.blocks import Block, Charts, Heading, Page, Rows, Text, unless_long
from erasediff_lora.evaluation.shares import percent
from erasediff_lora.objectives import Objective
from erasediff_lora.registry import OBJECTIVES
from erasediff_lora.storage.inside import inside, read_inside
from erasediff_lora.storage.run_folder import LOG_FILE, SELECTION_FILE

log = logging.getLogger(__name__)
LONGEST_LOG = 256 * 2**20
"""Bytes: a million steps."""
LOOKED_AT = ("step", "unlearning_accuracy", "retain_accuracy", "floor")
SETS = {"forget": "To forget:", "retain": "To keep:"}


def title(page: Page) -> str:
    return "Training"


def blocks(page: Page) -> Sequence[Block]:
    sets = read_data_report(page.run)
    found: list[Block] = [Heading("What it was trained on")] if sets else []
    for kind, rows in sets.items():
        columns = 3 if any(examples for *_, examples in rows) else 2
        cells = [(what, str(count), examples)[:columns] for what, count, examples in rows]
        table = Table(head=("", "pictures", "examples")[:columns], rows=cells)
        found += [Text(SETS[kind]), unless_long(Rows(table, f"{kind}-set.csv"))]
    if curves := _curves(page):
        found.append(Charts(curves))
    return found + _selection(page.run)


def _curves(page: Page) -> list[Chart]:
    with _left_out(page.run, LOG_FILE):
        if lines := _log_lines(page.run):
            objective = OBJECTIVES.get(page.result["recipe"]["objective"]["name"], Objective)
            return [charts.training(lines, objective.curves)]
    return []


def _log_lines(folder: Path) -> list[dict[str, Any]]:
    """The numbers of the training log."""
    file = inside(folder, LOG_FILE, LONGEST_LOG)
    with file.open("rb") if file is not None else io.BytesIO() as lines:
        read = [dict(json.loads(line)) for line in lines]
    return [{name: value for name, value in line.items() if isinstance(value, int | float)} for line in read]


@contextmanager
def _left_out(folder: Path, name: str) -> Iterator[None]:
    """Go on without a file of a run that is not as it was written: a report is made after hours."""
    try:
        yield
    except (UserError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        log.warning("%s is left out: it is not as a run writes it (%s)", folder / name, " ".join(str(error).split()))


def _selection(run: Path) -> list[Block]:
    """The adapters that were evaluated while training."""
    rows: list[dict[str, float]] = []
    with _left_out(run, SELECTION_FILE):
        looked = json.loads(read_inside(run, SELECTION_FILE) or "[]")
        rows = [{name: float(row[name]) for name in LOOKED_AT} for row in looked]
    if not rows:
        return []
    intro = (
        "Adapters evaluated while training. Kept: the highest unlearning accuracy among those that retain at least"
        f" {percent(rows[0]['floor'])}, on other seeds than the numbers above; among equals the one that retains more,"
        " then the earliest."
    )
    shares = [(f"{row['step']:.0f}", *(percent(row[f"{kind}_accuracy"]) for kind in KINDS)) for row in rows]
    head = ("step", "unlearning accuracy", "retain accuracy")
    return [Text(intro), Rows(Table(head=head, rows=shares, texts=0), "selection.csv")]


KINDS = ("unlearning", "retain")
