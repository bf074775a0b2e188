"""What became of the pictures and prompts that a set was made from: counted, and the first ones named."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from erasediff_lora.errors import UserError, printable
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.inside import read_inside
from erasediff_lora.storage.run_folder import DATA_REPORT_FILE

log = logging.getLogger(__name__)
NAMED = 10
"""Examples that are kept of a kind."""
SHOWN = 3
"""Of them, in the table."""
MOST_ROWS, FEWEST = 40, 20
"""Concepts with a row of their own; those with the fewest pictures, where there are more."""
LONGEST = 72
"""Characters of an example in the table."""


class LeftOut(StrEnum):
    """Why a file or a row is not in the set; the values are the words of the table."""

    OTHER_LABEL = "labelled otherwise"
    FORGOTTEN_LABEL = "labelled as what is to be forgotten"
    UNREADABLE = "not readable"
    NO_PICTURE = "files that are no pictures"
    HIDDEN = "hidden files"
    UNMATCHED = "rows of metadata without their picture"


class Noted(StrEnum):
    """What is to be known of what is in the set."""

    TURNED = "turned upright, as EXIF says"
    FLATTENED = "transparency laid on the background"
    SCALED = "more than 8 bits, scaled"
    FIRST_FRAME = "first of several frames"
    NO_CAPTION = "without a caption of their own, given a template's"
    EMPTY_CAPTION = "of an empty caption"
    UNUSED_CAPTIONS = "caption files not used"
    UNUSED_COLUMNS = "columns of metadata not used"
    FURTHER_LINES = "caption files of which the first line is used"
    CUT_CAPTION = "captions cut: longer than the model reads"
    BRACES = "captions with {braces}, which the model reads as they are"
    DUPLICATE = "pictures that are there twice"
    NOT_NAMED = "captions that do not name the concept, replaced whole"
    NAMES_FORGOTTEN = "captions that name what is to be forgotten"
    NOT_SHOWN = "concepts that no picture is labelled with"
    NO_DRAWING = "concepts without a picture: there are fewer pictures"
    LINKED = "files outside the folder, which links in it lead to"
    IN_BOTH = "pictures that are in the forget set as well"


@dataclass
class SetReport:
    """The account of one set.

    Attributes:
        pictures: How many it has.
        drawn: Whether the base draws them.
        concepts: Concept -> pictures of it.
        left_out: Reason -> examples, each with how often it came up.
        noted: The same for what is in the set.
        pixels: Hash of a picture's pixels -> its name.
    """

    pictures: int = 0
    drawn: bool = False
    concepts: Counter[str] = field(default_factory=Counter)
    left_out: dict[LeftOut, Counter[str]] = field(default_factory=dict)
    noted: dict[Noted, Counter[str]] = field(default_factory=dict)
    pixels: dict[str, str] = field(default_factory=dict, repr=False)

    def leave_out(self, reason: LeftOut, example: str) -> None:
        """Count what does not come into the set."""
        self.left_out.setdefault(reason, Counter())[_storable(example)] += 1

    def note(self, what: Noted, example: str) -> None:
        """Count something about the set."""
        self.noted.setdefault(what, Counter())[_storable(example)] += 1

    def add_picture(self, name: str, pixels: str) -> None:
        """Count a picture, and whether it is there a second time."""
        if pixels in self.pixels:
            self.note(Noted.DUPLICATE, name)
        self.pixels.setdefault(pixels, name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: the first examples of everything, and the names of reasons in small letters."""
        return {
            "pictures": self.pictures,
            "drawn": self.drawn,
            "concepts": dict(self.concepts),
            "left_out": {reason.name.lower(): _counted(found) for reason, found in self.left_out.items()},
            "noted": {what.name.lower(): _counted(found) for what, found in self.noted.items()},
        }

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """Rows of the table: what, how many, the first ones."""
        yield from _concept_rows(self.concepts)
        for reason, found in self.left_out.items():
            yield f"left out: {reason.value}", found.total(), summary(found, SHOWN)
        for what, found in self.noted.items():
            yield what.value, found.total(), summary(found, SHOWN)

    def table(self) -> str:
        """The rows as text, indented."""
        rows = list(self.rows())
        width = max((len(what) for what, _, _ in rows), default=0)
        lines = [f"  {what:{width}}  {count:6}  {examples}".rstrip() for what, count, examples in rows]
        return printable("\n".join(lines))


def _storable(name: str) -> str:
    """A name as files in UTF-8 take it: of a file it may have bytes that are none."""
    return name.encode("utf-8", "backslashreplace").decode()


def summary(found: Mapping[str, int], limit: int = NAMED) -> str:
    """Examples in words: 'clock (40), fish (38)'."""
    shown = [_short(name) + f" ({count})" * (count > 1) for name, count in list(found.items())[:limit]]
    return ", ".join(shown) + ", …" * (len(found) > limit)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"


def write_data_report(folder: Path, forget: SetReport, retain: SetReport) -> None:
    """Write the accounts of a run's sets into its folder, pictures that are in both counted with the retain set."""
    retain.noted.pop(Noted.IN_BOTH, None)
    for pixels, name in retain.pixels.items():
        if pixels in forget.pixels:
            retain.note(Noted.IN_BOTH, name)
    report = {"forget": forget.to_dict(), "retain": retain.to_dict()}
    write_text(folder / DATA_REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def read_data_report(folder: Path) -> dict[str, list[tuple[str, int, str]]]:
    """The rows of `SetReport.rows` by set, as they lie in a run's folder; none if they are not there or not ours."""
    try:
        if (text := read_inside(folder, DATA_REPORT_FILE)) is None:
            return {}
        content = json.loads(text)
        return {kind: list(_rows(content[kind])) for kind in ("forget", "retain")}
    except (UserError, OverflowError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s is left out: it is no account of a run's sets (%s)", folder / DATA_REPORT_FILE, error)
        return {}


def _rows(content: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    yield from _concept_rows({concept: int(count) for concept, count in content["concepts"].items()})
    for name, found in content["left_out"].items():
        yield f"left out: {LeftOut[name.upper()].value}", int(found["count"]), summary(found["examples"], SHOWN)
    for name, found in content["noted"].items():
        yield Noted[name.upper()].value, int(found["count"]), summary(found["examples"], SHOWN)


def _concept_rows(concepts: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
    """Pictures of each concept; of very many concepts those with the fewest."""
    fewest = sorted(concepts, key=lambda concept: concepts[concept])
    shown = set(fewest if len(fewest) <= MOST_ROWS else fewest[:FEWEST])
    for concept, count in concepts.items():
        if concept in shown:
            yield f"of {concept}", count, ""
    if rest := [count for concept, count in concepts.items() if concept not in shown]:
        yield f"of {len(rest):,} others", sum(rest), f"{min(rest)} to {max(rest)} each"


def _counted(found: Counter[str]) -> dict[str, Any]:
    return {"count": found.total(), "examples": dict(list(found.items())[:NAMED])}
