"""The report: one HTML file that needs nothing else, made from what lies in a run's folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import yaml
from PIL import Image

from erasediff_lora.data.set_report import read_data_report
from erasediff_lora.evaluation import charts
from erasediff_lora.evaluation.attacks import Outcome, attack
from erasediff_lora.evaluation.charts import Chart
from erasediff_lora.evaluation.metrics import Unknown
from erasediff_lora.evaluation.parts import Found, Part, Table
from erasediff_lora.evaluation.pictures import Drawn, by_concept
from erasediff_lora.evaluation.results import asked, attacked, measured
from erasediff_lora.evaluation.shares import interval_text, percent
from erasediff_lora.evaluation.verdict import RULES, headline, read_judged
from erasediff_lora.objectives import Objective
from erasediff_lora.recipe.names import few
from erasediff_lora.registry import OBJECTIVES
from erasediff_lora.storage.files import atomic, write_text
from erasediff_lora.storage.run_folder import EVALUATION_FILE, LOG_FILE, REPORT_FILE, SELECTION_FILE, picture_in

COLUMNS = 8
CELL = 128
MOST_STRIPS = 40
"""Concepts whose pictures are shown, of a kind of prompts or of an attack: a report is one file."""
Pair = tuple[Sequence[Drawn], Sequence[Drawn]]


def save_strips(
    folder: Path, pictures: Mapping[str, Pair], attacks: Mapping[str, Mapping[str, Outcome]]
) -> list[dict[str, Any]]:
    """Write the report's pictures: for each concept and each attack a row a model, same seeds below each other.

    Args:
        folder: Where the files go.
        pictures: 'forget' and 'retain': without and with the adapter.
        attacks: By name, then by model.

    Returns:
        One entry a strip: section, title, rows, alternative text, and the file under `folder`'s parent.
    """
    strips = []
    for kind, (before, after) in pictures.items():
        for number, (concept, indices) in enumerate(islice(by_concept(before).items(), MOST_STRIPS), 1):
            rows = {
                "base": [before[i].image for i in indices[:COLUMNS]],
                "erased": [after[i].image for i in indices[:COLUMNS]],
            }
            strips.append(_save_strip(folder / f"{kind}-strip-{number}.webp", kind, concept, rows))
    for name, outcomes in attacks.items():
        strips += _attack_strips(folder, name, outcomes)
    return strips


def _attack_strips(folder: Path, name: str, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """A strip a concept, the base on top; the concept is in the title where there are several."""
    own: dict[str, dict[str, list[Image.Image]]] = {}
    for model in sorted(outcomes, key=lambda model: model != "base"):
        for item in outcomes[model].pictures:
            own.setdefault(item.prompt.concept or "", {}).setdefault(model, []).append(item.image)
    strips = []
    for number, (concept, rows) in enumerate(islice(own.items(), MOST_STRIPS), 1):
        file, title = f"{name}-strip.webp", attack(name).title
        if len(own) > 1:
            file, title = f"{name}-strip-{number}.webp", f"{concept}, {title[0].lower()}{title[1:]}"
        shown = {model: images[:COLUMNS] for model, images in rows.items()}
        strips.append(_save_strip(folder / file, name, title, shown))
    return strips


def _save_strip(file: Path, section: str, title: str, rows: Mapping[str, Sequence[Image.Image]]) -> dict[str, Any]:
    cell = min(CELL, max(image.width for images in rows.values() for image in images))
    gap = max(2, cell // 32)
    columns = max(len(images) for images in rows.values())
    sheet = Image.new("RGB", (columns * (cell + gap) - gap, len(rows) * (cell + gap) - gap), "white")
    for row, images in enumerate(rows.values()):
        for column, image in enumerate(images):
            sheet.paste(image.convert("RGB").resize((cell, cell)), (column * (cell + gap), row * (cell + gap)))
    with atomic(file) as temporary:
        sheet.save(temporary, format="WEBP", quality=85)
    alt = f"{title}: {columns} pictures a row; " + ", ".join(f"row {n}: {name}" for n, name in enumerate(rows, 1))
    return {
        "section": section,
        "title": title,
        "rows": list(rows),
        "alt": alt,
        "file": f"{file.parent.name}/{file.name}",
    }


def write_report(folder: Path, *, run: Path | None = None) -> Path:
    """Write report.html from evaluation.json, the training log and the pictures in a folder.

    Args:
        folder: With the evaluation.
        run: With the training log, if that is another folder.

    Raises:
        UserError: If the folder has no evaluation, or the report cannot be written.
    """
    result = read_judged(folder)
    run = run or folder
    page = environment().get_template("report.html.jinja")
    context = {
        "result": result,
        "headline": headline(result["verdict"]),
        "rules": RULES,
        "attack_rows": [_attack_row(row) for claim in result["verdict"] for row in claim.get("attacks", [])],
        "attacks": _attacks(result),
        "tables": _tables(result),
        "charts": _charts(run, result),
        "most_strips": MOST_STRIPS,
        "strips": embedded_strips(folder, result),
        "selection": _json(run / SELECTION_FILE),
        "sets": read_data_report(run),
        "recipe": yaml.safe_dump(result["recipe"], sort_keys=False, allow_unicode=True),
    }
    write_text(folder / REPORT_FILE, page.render(context))
    return folder / REPORT_FILE


def _attack_row(row: Mapping[str, Any]) -> Sequence[str]:
    """The cells of an attack on a concept."""
    told = {True: "withstood", False: "broken", None: "not decided" if row["works"] else "tells nothing"}
    return [
        str(row["concept"]),
        str(row["name"]),
        told[row["holds"] if row["works"] else None],
        percent(row["share"]),
        interval_text(row["share"], row["pictures"]),
        f"at most {row['limit']:.0%}",
        percent(row["base"]),
        percent(row["floor"]),
        str(row["pictures"] or "?"),
    ]


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _attacks(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, title, budget, a cell for each model, and notes, of each attack."""
    found = []
    for attacker, entry in attacked(result):
        models = entry["models"]
        cells = {name: asked(attacker, attacker.words, model, otherwise="?") for name, model in models.items()}
        notes: Sequence[str] = asked(attacker, attacker.notes, models["erased"], otherwise=())
        shown = {"name": attacker.name, "cells": cells, "notes": notes}
        found.append(shown | {key: entry[key] for key in ("title", "budget")})
    return found


def _tables(result: Mapping[str, Any]) -> list[Table]:
    """What the metrics measured."""
    return [
        table
        for metric, found in measured(result)
        for table in asked(metric, metric.tables, found, otherwise=Unknown(metric.name).tables(found))
    ]


def _charts(folder: Path, result: Mapping[str, Any]) -> list[Chart]:
    """Those for which there are numbers: of the metrics, of the attacks, of the training."""
    found = [chart for metric, numbers in measured(result) for chart in _of(metric, numbers)]
    if result["attacks"]:
        found.append(charts.attacks(result["attacks"]))
    found += [chart for attacker, entry in attacked(result) for chart in _of(attacker, entry)]
    if (folder / LOG_FILE).is_file():
        lines = (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()
        if lines:
            objective = OBJECTIVES.get(result["recipe"]["objective"]["name"], Objective)
            found.append(charts.training([json.loads(line) for line in lines], objective.curves))
    return found


def _of(part: Part, numbers: Found) -> Sequence[Chart]:
    return asked(part, part.charts, numbers, otherwise=())


def embedded_strips(folder: Path, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The strips whose files are there, as data URIs.

    Raises:
        UserError: If one names something else than a picture in the folder.
    """
    found = []
    for number, strip in enumerate(result.get("strips", [])):
        file = picture_in(folder, strip["file"], f"{EVALUATION_FILE}: strips.{number}.file")
        if file is not None:
            found.append(strip | {"uri": _data_uri(file.read_bytes(), "image/webp")})
    return found


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def environment() -> jinja2.Environment:
    """Templates of this package; everything that is filled in is escaped."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("erasediff_lora.evaluation", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"percent": percent, "few": few}
    return templates
