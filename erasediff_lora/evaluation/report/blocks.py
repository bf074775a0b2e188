"""What a section of the report is made of; `macros.html.jinja` says how each is shown."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from erasediff_lora.evaluation.charts import Chart
from erasediff_lora.evaluation.metrics import Recognition
from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.strips import Strip

SIGNS = {True: "✓", False: "✗", None: "?"}
"""Before a word that says whether something holds: colour alone tells not everybody."""
LONG = 16
"""Rows from which on a table of numbers is folded."""


@dataclass(frozen=True)
class Page:
    """What a report is made of.

    Attributes:
        result: The evaluation.json, with its verdict.
        run: The folder of the run, with the training log.
        strips: Its pictures.
        seen: How often the judge saw what was asked for; None without one.
    """

    result: Mapping[str, Any]
    run: Path
    strips: Sequence[Strip]
    seen: Recognition | None

    @property
    def blur(self) -> bool:
        """Whether pictures are shown on demand only."""
        return bool(self.result.get("blur"))

    def claim(self, name: str) -> Mapping[str, Any]:
        """One of the verdict's; empty if it has none of the name."""
        nothing: Mapping[str, Any] = {}
        return next((claim for claim in self.result["verdict"] if claim["claim"] == name), nothing)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Heading:
    """Of a part of a section."""

    text: str
    kind: str = "heading"


@dataclass(frozen=True)
class Items:
    """A list of things, each with what there is to say of it."""

    items: Sequence[tuple[str, str]]
    kind: str = "items"


@dataclass(frozen=True)
class Rows:
    """A table, which can be saved as CSV. Cells that begin with one of SIGNS are coloured.

    Attributes:
        table: Its words and numbers.
        name: Of its file.
    """

    table: Table
    name: str
    kind: str = "rows"

    @property
    def uri(self) -> str:
        """The rows as a data URI."""
        return csv_uri([self.table.head, *self.table.rows])


@dataclass(frozen=True)
class Charts:
    """Charts, side by side where there is room."""

    charts: Sequence[Chart]
    kind: str = "charts"


@dataclass(frozen=True)
class Strips:
    """Pictures.

    Attributes:
        strips: Of one concept each.
        blur: Whether they are shown on demand only.
        words: For those in which the judge sees what was asked for, and for the others.
        level: Of their headings: 3, or 4 below a `Heading`.
    """

    strips: Sequence[Strip]
    blur: bool
    words: tuple[str, str] = ("seen", "not seen")
    level: int = 3
    kind: str = "strips"


@dataclass(frozen=True)
class Code:
    """Text to copy, or to save under a name."""

    text: str
    file: str = ""
    kind: str = "code"

    @property
    def uri(self) -> str:
        """The text as a data URI."""
        return text_uri(self.text)


@dataclass(frozen=True)
class Folded:
    """What is shown when it is asked for, and in print."""

    summary: str
    blocks: Sequence[Block]
    kind: str = "folded"


class Block(Protocol):
    """One of the above."""

    @property
    def kind(self) -> str:
        """The macro that shows it."""
        ...


class Section(Protocol):
    """A part of the report: a module in `sections/`, and a line in its `__init__`."""

    def title(self, page: Page) -> str:
        """Its heading."""
        ...

    def blocks(self, page: Page) -> Sequence[Block]:
        """What it shows; nothing leaves the section out."""
        ...


def tables(found: Iterable[Table], name: str) -> list[Block]:
    """Paragraphs and tables; long ones are folded."""
    blocks: list[Block] = []
    for number, table in enumerate(found, 1):
        if table.intro:
            blocks.append(Text(table.intro))
        if table.rows:
            blocks.append(unless_long(Rows(table, f"{name}-{number}.csv")))
    return blocks


def unless_long(rows: Rows) -> Block:
    """A table, folded if it would push what follows off the page."""
    return rows if len(rows.table.rows) <= LONG else Folded(f"All {len(rows.table.rows)} rows", [rows])


def csv_uri(rows: Iterable[Sequence[object]]) -> str:
    """Rows as a data URI that spreadsheets read. What would be a formula there is text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([[_harmless(str(cell)) for cell in row] for row in rows])
    return text_uri("\ufeff" + buffer.getvalue(), "text/csv")


def _harmless(cell: str) -> str:
    """Names come from strangers' files, and some programs run a cell that begins like a formula."""
    is_number = cell.removeprefix("-").replace(".", "", 1).replace("e-", "", 1).isdigit()
    return f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t") and not is_number else cell


def text_uri(text: str, kind: str = "text/plain") -> str:
    """Text as a data URI."""
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
