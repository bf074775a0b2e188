"""How the adapter was trained, and on what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasediff_lora.data.set_report import read_data_report
from erasediff_lora.evaluation import charts
from erasediff_lora.evaluation.charts import Chart
from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.blocks import Block, Charts, Heading, Page, Rows, Text
from erasediff_lora.evaluation.shares import percent
from erasediff_lora.objectives import Objective
from erasediff_lora.registry import OBJECTIVES
from erasediff_lora.storage.run_folder import LOG_FILE, SELECTION_FILE

SETS = {"forget": "To forget:", "retain": "To keep:"}


def title(page: Page) -> str:
    return "Training"


def blocks(page: Page) -> Sequence[Block]:
    sets = read_data_report(page.run)
    found: list[Block] = [Heading("What it was trained on")] if sets else []
    for kind, rows in sets.items():
        cells = [(what, str(count), examples) for what, count, examples in rows]
        found += [Text(SETS[kind]), Rows(Table(head=("", "pictures", "examples"), rows=cells), f"{kind}-set.csv")]
    if curves := _curves(page):
        found.append(Charts(curves))
    return found + _selection(page.run)


def _curves(page: Page) -> list[Chart]:
    file = page.run / LOG_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    if not lines:
        return []
    objective = OBJECTIVES.get(page.result["recipe"]["objective"]["name"], Objective)
    return [charts.training([json.loads(line) for line in lines], objective.curves)]


def _selection(run: Path) -> list[Block]:
    """The adapters that were evaluated while training."""
    file = run / SELECTION_FILE
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    if not rows:
        return []
    intro = (
        "Adapters evaluated while training. Kept: the highest unlearning accuracy among those that retain at least"
        f" {percent(rows[0]['floor'])}, on other seeds than the numbers above; among equals the one that retains more,"
        " then the earliest."
    )
    shares = [(str(row["step"]), *(percent(row[f"{kind}_accuracy"]) for kind in KINDS)) for row in rows]
    head = ("step", "unlearning accuracy", "retain accuracy")
    return [Text(intro), Rows(Table(head=head, rows=shares, texts=0), "selection.csv")]


KINDS = ("unlearning", "retain")
