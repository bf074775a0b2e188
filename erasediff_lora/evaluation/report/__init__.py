"""The report: one HTML file that needs nothing else, made from what lies in a run's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from erasediff_lora.evaluation.report.blocks import SIGNS, Page
from erasediff_lora.evaluation.report.sections import SECTIONS
from erasediff_lora.evaluation.report.sections.provenance import date_of
from erasediff_lora.evaluation.report.strips import embedded_strips
from erasediff_lora.evaluation.results import recognition
from erasediff_lora.evaluation.shares import percent
from erasediff_lora.evaluation.verdict import headline, read_judged
from erasediff_lora.recipe.names import few
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.run_folder import REPORT_FILE


def write_report(folder: Path, *, run: Path | None = None) -> Path:
    """Write report.html from evaluation.json, the training log and the pictures in a folder.

    Args:
        folder: With the evaluation.
        run: With the training log, if that is another folder.

    Raises:
        UserError: If the folder has no evaluation, or the report cannot be written.
    """
    result = read_judged(folder)
    page = Page(result, run or folder, embedded_strips(folder, result), recognition(result))
    found = [(section.title(page), list(section.blocks(page))) for section in SECTIONS]
    context = {
        "result": result,
        "headline": headline(result["verdict"]),
        "outcome": _outcome([claim["holds"] for claim in result["verdict"]]),
        "date": date_of(result),
        "sections": [(title, blocks) for title, blocks in found if blocks],
    }
    write_text(folder / REPORT_FILE, environment().get_template("report.html.jinja").render(context))
    return folder / REPORT_FILE


def _outcome(answers: Sequence[bool | None]) -> str:
    """The class of the headline: a failed claim is not outweighed by others that hold."""
    if False in answers:
        return "fails"
    return "open" if None in answers or not answers else "holds"


def environment() -> jinja2.Environment:
    """Templates of this package; everything that is filled in is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("erasediff_lora.evaluation", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"percent": percent, "few": few, "sign": SIGNS.__getitem__, "state": _state}
    return templates


def _state(cell: object) -> str:
    """The class of a cell that says whether something holds."""
    signs = {SIGNS[True]: "holds", SIGNS[False]: "fails", SIGNS[None]: "open"}
    first, _, rest = str(cell).partition(" ")
    return signs.get(first, "") if rest else ""
