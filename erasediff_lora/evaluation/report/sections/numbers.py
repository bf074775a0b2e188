"""What the metrics measured: tables, charts, pictures, and all numbers as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasediff_lora.evaluation.charts import Chart
from erasediff_lora.evaluation.metrics import Unknown
from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.blocks import Block, Charts, Page, Rows, Strips, Text, tables
from erasediff_lora.evaluation.results import asked, charts_of, measured

EVERYTHING = "all-numbers.csv"


def title(page: Page) -> str:
    return "Numbers"


def blocks(page: Page) -> Sequence[Block]:
    found: list[Block] = []
    shown: list[Chart] = []
    for metric, numbers in measured(page.result):
        given = asked(metric, metric.tables, numbers, otherwise=Unknown(metric.name).tables(numbers))
        found += tables(given, metric.name)
        shown += charts_of(metric, numbers)
        strips = [strip for strip in page.strips if strip.section == metric.name]
        found += [Strips(strips, page.blur)] if strips else []
    found += [Charts(shown)] if shown else []
    everything = everything_of(page.result)
    note = f"{len(everything):,} numbers in one file, as they stand in evaluation.json."
    return [*found, Text(note), Rows(Table("", ("what", "value"), everything), EVERYTHING, kind="download")]


def everything_of(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of every number and word of an evaluation but its recipe, in full precision."""
    return [row for name, value in result.items() if name != "recipe" for row in _flat(value, name)]


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in _flat(inner, f"{name}/{key}")]
    if isinstance(value, list):
        return [row for index, inner in enumerate(value) for row in _flat(inner, f"{name}/{index}")]
    return [(name, "" if value is None else str(value))]
