"""The report's pictures: for each concept a sheet with a row a model, same prompts and seeds below each other."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from erasediff_lora.evaluation.attacks import Outcome, attack
from erasediff_lora.evaluation.pictures import Drawn, by_concept
from erasediff_lora.storage.files import atomic
from erasediff_lora.storage.run_folder import EVALUATION_FILE, picture_in

COLUMNS = 8
MOST_STRIPS = 40
"""Concepts whose pictures are shown, of a kind of prompts or of an attack: a report is one file."""
LARGE, SMALL, FEW = 256, 128, 24
"""Pixels of a picture's side at most, in a report of no more strips than FEW and of more: for the same reason."""
ZOOM = 1.02
"""So that a picture's edge shows nothing of its neighbour."""

Pair = tuple[Sequence[Drawn], Sequence[Drawn]]
Look = Callable[[str, Sequence[Drawn]], Sequence[bool | None]]
"""(section, pictures) -> whether the judge sees in each what it was asked for; None where it cannot tell."""


@dataclass(frozen=True)
class Sheet:
    """Pictures of one concept, before they are written.

    Attributes:
        section: 'forget', 'retain', or the name of an attack or a metric.
        number: Among those of its section, from 1.
        concept: What they show, or the prompt where it names nothing.
        title: Of the figure.
        rows: Model -> its pictures; the same prompts and seeds in all rows.
    """

    section: str
    number: int
    concept: str
    title: str
    rows: Mapping[str, Sequence[Drawn]]


def save_strips(
    folder: Path,
    pictures: Mapping[str, Pair],
    attacks: Mapping[str, Mapping[str, Outcome]],
    more: Sequence[Sheet] = (),
    look: Look | None = None,
) -> list[dict[str, Any]]:
    """Write the report's pictures.

    Args:
        folder: Where the files go.
        pictures: 'forget' and 'retain': without and with the adapter.
        attacks: By name, then by model.
        more: What metrics show besides.
        look: The judge's eyes, if there is one.

    Returns:
        One entry a sheet: section, concept, title, rows, alternative text, the prompt and seed of each column and what
        the judge sees there, and the file under `folder`'s parent.
    """
    sheets = [*_of_pairs(pictures), *(sheet for name in attacks for sheet in _of_attack(name, attacks[name])), *more]
    cell = LARGE if len(sheets) <= FEW else SMALL
    return [_save(folder, sheet, cell, look) for sheet in sheets]


def _of_pairs(pictures: Mapping[str, Pair]) -> Iterator[Sheet]:
    for kind, (before, after) in pictures.items():
        for number, (concept, indices) in enumerate(islice(by_concept(before).items(), MOST_STRIPS), 1):
            shown = indices[:COLUMNS]
            rows = {"base": [before[i] for i in shown], "erased": [after[i] for i in shown]}
            yield Sheet(kind, number, concept, concept, rows)


def _of_attack(name: str, outcomes: Mapping[str, Outcome]) -> Iterator[Sheet]:
    """A sheet a concept, the base on top; the concept is in the title where there are several."""
    own: dict[str, dict[str, list[Drawn]]] = {}
    for model in sorted(outcomes, key=lambda model: model != "base"):
        for item in outcomes[model].pictures:
            own.setdefault(item.prompt.concept or "", {}).setdefault(model, []).append(item)
    title = attack(name).title
    for number, (concept, rows) in enumerate(islice(own.items(), MOST_STRIPS), 1):
        named = f"{concept}, {title[0].lower()}{title[1:]}" if len(own) > 1 else title
        yield Sheet(name, number, concept, named, {model: items[:COLUMNS] for model, items in rows.items()})


def _save(folder: Path, sheet: Sheet, largest: int, look: Look | None) -> dict[str, Any]:
    cell = min(largest, max(item.image.width for items in sheet.rows.values() for item in items))
    columns = max(len(items) for items in sheet.rows.values())
    image = Image.new("RGB", (columns * cell, len(sheet.rows) * cell), "white")
    for row, items in enumerate(sheet.rows.values()):
        for column, item in enumerate(items):
            image.paste(item.image.convert("RGB").resize((cell, cell)), (column * cell, row * cell))
    file = folder / f"{sheet.section}-strip-{sheet.number}.webp"
    with atomic(file) as temporary:
        image.save(temporary, format="WEBP", quality=85)
    seen = {model: list(look(sheet.section, items)) if look else [] for model, items in sheet.rows.items()}
    models = ", ".join(f"row {number}: {model}" for number, model in enumerate(sheet.rows, 1))
    return {
        "section": sheet.section,
        "concept": sheet.concept,
        "title": sheet.title,
        "rows": list(sheet.rows),
        "alt": f"{sheet.title}: {columns} pictures a row; {models}",
        "pictures": [_column(sheet.rows, seen, column) for column in range(columns)],
        "file": f"{file.parent.name}/{file.name}",
    }


def _column(
    rows: Mapping[str, Sequence[Drawn]], seen: Mapping[str, Sequence[bool | None]], column: int
) -> dict[str, Any]:
    """Prompt and seed of a column, and what the judge sees of each model there."""
    item = next(items[column] for items in rows.values() if column < len(items))
    told = {model: hits[column] for model, hits in seen.items() if column < len(hits)}
    return {"prompt": item.prompt.text, "seed": item.seed, "seen": told}


@dataclass(frozen=True)
class Picture:
    """A place on a sheet.

    Attributes:
        model: Whose it is.
        x: Of its left edge, in per cent as CSS counts them.
        y: Of its upper edge.
        seen: Whether the judge sees what was asked for; None if nobody can tell.
    """

    model: str
    x: float
    y: float
    seen: bool | None


@dataclass(frozen=True)
class Column:
    """Pictures of one prompt and seed."""

    prompt: str
    seed: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Strip:
    """A sheet, as the page shows it.

    Attributes:
        section: As in `Sheet`.
        concept: As in `Sheet`; the title in older files.
        title: Of the figure.
        alt: What it shows, in words.
        uri: The picture as a data URI.
        rows: The models.
        columns: Its pictures; none in older files, which say nothing of them.
    """

    section: str
    concept: str
    title: str
    alt: str
    uri: str
    rows: Sequence[str]
    columns: Sequence[Column] = field(default=())

    @property
    def size(self) -> tuple[float, float]:
        """Of the sheet, in per cent of a picture's place."""
        return 100 * ZOOM * len(self.columns), 100 * ZOOM * len(self.rows)

    def tally(self) -> str:
        """What the judge sees in them, in words; nothing where there was none."""
        told: dict[str, list[bool]] = {}
        for column in self.columns:
            for picture in column.pictures:
                if picture.seen is not None:
                    told.setdefault(picture.model, []).append(picture.seen)
        return "; ".join(f"{model}: {sum(hits)} of these {len(hits)}" for model, hits in told.items())


def embedded_strips(folder: Path, result: Mapping[str, Any]) -> list[Strip]:
    """The strips whose files are there.

    Raises:
        UserError: If one names something else than a picture in the folder.
    """
    found = []
    for number, entry in enumerate(result.get("strips", [])):
        file = picture_in(folder, entry["file"], f"{EVALUATION_FILE}: strips.{number}.file")
        if file is not None:
            found.append(_strip(entry, file))
    return found


def _strip(entry: Mapping[str, Any], file: Path) -> Strip:
    uri = f"data:image/webp;base64,{base64.b64encode(file.read_bytes()).decode()}"
    rows, title = [str(name) for name in entry["rows"]], str(entry["title"])
    columns = [_place(rows, entry["pictures"], index) for index in range(len(entry.get("pictures", ())))]
    concept = str(entry.get("concept", title))
    return Strip(str(entry["section"]), concept, title, str(entry["alt"]), uri, rows, columns)


def _place(rows: Sequence[str], pictures: Sequence[Mapping[str, Any]], column: int) -> Column:
    """Where the pictures of a column lie."""
    found = pictures[column]
    seen = {name: hit for name, hit in found["seen"].items() if isinstance(hit, bool)}
    places = [
        Picture(name, _position(column, len(pictures)), _position(row, len(rows)), seen.get(name))
        for row, name in enumerate(rows)
    ]
    return Column(str(found["prompt"]), str(found["seed"]), places)


def _position(index: int, count: int) -> float:
    """Of one of `count` pictures in a row, as CSS has `background-position` for what is larger than its place."""
    return 100 * (index * ZOOM + (ZOOM - 1) / 2) / (count * ZOOM - 1)
