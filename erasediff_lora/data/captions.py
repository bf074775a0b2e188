"""Captions and labels of pictures in a folder: metadata.jsonl, metadata.csv, and text files beside the pictures."""

from __future__ import annotations

import csv
import gc
import io
import json
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from erasediff_lora.data.folder_entries import files_below
from erasediff_lora.data.labels import LABEL_COLUMNS
from erasediff_lora.data.pictures import SUFFIXES
from erasediff_lora.data.set_report import LeftOut, Noted, SetReport
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe import Images
from erasediff_lora.storage.inside import read_plain

LISTINGS = ("metadata.jsonl", "metadata.csv")
"""In the folder or below it; `file_name` is relative to where they lie."""
FILE_COLUMN = "file_name"
SIDECARS = (".txt", ".caption")
CAPTION_COLUMNS = ("text", "caption")
"""Columns and keys with captions, where the recipe's own is not there."""
LARGEST_LISTING, LARGEST_CAPTION = 128 * 2**20, 2**20
"""Bytes."""
LONGEST_CAPTION = 2**15
"""Characters: no model reads a hundredth of them."""
_BOM = b"\xef\xbb\xbf"


class _Twice(ValueError):
    """A row has a name twice.

    Args:
        line: Of the row.
        name: What it has twice.
    """

    def __init__(self, line: int, name: str) -> None:
        self.line, self.name = line, name
        super().__init__(name)


@dataclass
class Found:
    """A picture's file, and what is written about it."""

    file: Path
    relative: Path
    values: dict[str, Any] = field(default_factory=dict)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for garbage, which looks through all that is there again and again while much is made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_uncollected()
def find(field: str, images: Images, report: SetReport) -> list[Found]:
    """The pictures of the folder in the order of their names, with their rows of metadata and their captions.

    A caption in metadata goes before one in a text file.

    Args:
        field: What the user calls the set.
        images: Names the folder, and the columns.
        report: Counts the files that are not used.

    Raises:
        UserError: For metadata that is not readable, or names pictures that are not there (unless images.on_error is
            skip).
    """
    assert images.folder is not None
    found, listings, texts = _sorted_out(images.folder, report)
    place = f"{field}.images.folder"
    index = _Index(found)
    unmatched: dict[str, str] = {}
    for listing in listings:
        within = listing.parent.relative_to(images.folder).as_posix()
        for number, row in _rows(listing, images, place):
            if (picture := index.find(images.folder, within, row[FILE_COLUMN])) is None:
                unmatched[f"{listing}:{number}"] = row[FILE_COLUMN]
                continue
            if picture.values and picture.values != row:
                raise UserError(
                    Problem(
                        place,
                        f"{listing}:{number}",
                        f"says other things of {picture.relative.as_posix()} than an earlier row.",
                        "Leave one of them.",
                    )
                )
            picture.values = row
    _require_matched(place, images, unmatched, found, report)
    _require_columns(field, images, found)
    _add_texts(found, texts, images, place, report)
    return found


def caption_of(values: Mapping[str, Any], column: str) -> str | None:
    """The caption in a row, which may be empty; None if there is none.

    Raises:
        ValueError: If it is no text, or more than anybody writes.
    """
    for name in _columns(column):
        if (value := values.get(name)) is not None:
            if not isinstance(value, str):
                raise ValueError(f"its caption {value!r} is no text")
            if len(value) > LONGEST_CAPTION:
                raise ValueError(f"its caption has {len(value):,} characters, and {LONGEST_CAPTION:,} are plenty")
            return value
    return None


def _sorted_out(folder: Path, report: SetReport) -> tuple[list[Found], list[Path], list[Path]]:
    """Pictures, listings and text files below a folder; what else lies there is counted."""
    found, listings, texts = [], [], []
    for entry in files_below(folder):
        file, relative, suffix = entry.file, entry.relative, entry.file.suffix.lower()
        if entry.leads_out:
            report.note(Noted.LINKED, relative.as_posix())
        if any(part.startswith((".", "__MACOSX")) for part in relative.parts):
            report.leave_out(LeftOut.HIDDEN, relative.as_posix())
        elif file.name.lower() in LISTINGS:
            listings.append(file)
        elif not entry.is_file and file.exists():  # a pipe or a device, which may never end
            report.leave_out(LeftOut.NO_PICTURE, relative.as_posix())
        elif suffix in SUFFIXES:
            found.append(Found(file, relative))
        elif suffix in SIDECARS:
            texts.append(file)
        else:
            report.leave_out(LeftOut.NO_PICTURE, suffix or file.name)
    return found, listings, texts


class _Index:
    """Pictures by their paths, however these are spelled."""

    def __init__(self, found: Iterable[Found]) -> None:
        self._exact = {picture.relative.as_posix(): picture for picture in found}

    @cached_property
    def _alike(self) -> list[dict[str, list[Found]]]:
        """By paths in another case or Unicode form, and by those without a suffix: few sets ask for it."""
        levels: list[dict[str, list[Found]]] = [defaultdict(list) for _ in range(2)]
        for path, picture in self._exact.items():
            for level, key in zip(levels, self._keys(path), strict=True):
                level[key].append(picture)
        return levels

    def find(self, root: Path, folder: str, name: str) -> Found | None:
        """The one picture that the name means: as it stands, else in another case or Unicode form, or suffix.

        Args:
            root: The set's folder.
            folder: Where the metadata lies, below it.
            name: As it is written there.
        """
        name = name.strip().replace("\\", "/")
        if name.startswith(root.as_posix() + "/"):
            name, folder = name[len(root.as_posix()) + 1 :], ""
        path = posixpath.normpath(posixpath.join(folder, name))
        if (picture := self._exact.get(path)) is not None:
            return picture
        for level, key in zip(self._alike, self._keys(path), strict=True):
            if len(level.get(key, [])) == 1:
                return level[key][0]
        return None

    @staticmethod
    def _keys(path: str) -> tuple[str, str]:
        alike = unicodedata.normalize("NFC", path).casefold()
        return alike, posixpath.splitext(alike)[0]


def columns_read(images: Images) -> list[str]:
    """Columns with names of files, captions and labels."""
    return [FILE_COLUMN, *_columns(images.caption_column), images.concept_column, *LABEL_COLUMNS]


def _named(row: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """A row whose columns are called as they are read, whatever their case and the spaces around them."""
    spelled = {name: known.get(name.strip().casefold(), name) for name in row}
    return {name if spelled[name] in row else spelled[name]: value for name, value in row.items()}


def _rows(listing: Path, images: Images, place: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a listing, each with its file_name.

    Raises:
        UserError: If it cannot be read, or a row has more fields than there are columns.
    """
    is_table = listing.suffix.lower() == ".csv"
    what = "a table with the column file_name" if is_table else "a JSON object with file_name"
    example = "file_name,text" if is_table else '{"file_name": "a.png", "text": "a photo of a cat"}'
    known = {name.casefold(): name for name in reversed(columns_read(images))}
    content = _content(listing, LARGEST_LISTING, place)
    for number, row in _distinct(_csv_rows(content) if is_table else _json_rows(content), listing, place):
        if isinstance(row, dict) and None in row:  # what no column is for
            what = f"has more fields than there are columns, the last one {row[None][-1]!r}."
            remedy = 'Write text with commas in quotes: a.png,"a cat, asleep".'
            raise UserError(Problem(place, f"{listing}:{number}", what, remedy))
        row = _named(row, known) if isinstance(row, dict) else row
        if not isinstance(row, dict) or not isinstance(row.get(FILE_COLUMN), str):
            raise UserError(
                Problem(
                    place,
                    f"{listing}:{number}",
                    f"is not {what}, in UTF-8.",
                    f"{'It begins' if is_table else 'Each line is'} like {example}.",
                )
            )
        yield number, row


def _distinct(rows: Iterator[tuple[int, Any]], listing: Path, place: str) -> Iterator[tuple[int, Any]]:
    """The rows, as long as none has a name twice, of which one would be taken."""
    try:
        yield from rows
    except _Twice as twice:
        what = f"has {twice.name!r} twice."
        raise UserError(Problem(place, f"{listing}:{twice.line}", what, "Take one out.")) from None


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs) and (twice := _first_twice([name for name, _ in pairs])) is not None:
        raise _Twice(0, twice)
    return found


def _first_twice(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _json_rows(content: bytes) -> Iterator[tuple[int, Any]]:
    """Line numbers, and what stands there; None where that is no JSON."""
    for number, line in enumerate(content.removeprefix(_BOM).splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line.decode("utf-8"), object_pairs_hook=_pairs)
            except _Twice as twice:
                raise _Twice(number, twice.name) from None
            except (ValueError, RecursionError):
                row = None
            yield number, row


def _csv_rows(content: bytes) -> Iterator[tuple[int, Any]]:
    """Line numbers and rows; None where the file cannot be read on."""
    number = 1
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text, skipinitialspace=True)
        if (twice := _first_twice([name for name in reader.fieldnames or [] if name.strip()])) is not None:
            raise _Twice(1, twice)
        for row in reader:
            number = reader.line_num
            yield number, row
    except (csv.Error, UnicodeDecodeError):
        yield number, None


def _require_matched(
    place: str, images: Images, unmatched: Mapping[str, str], found: Iterable[Found], report: SetReport
) -> None:
    if not unmatched:
        return
    if images.on_error == "skip":
        for name in unmatched.values():
            report.leave_out(LeftOut.UNMATCHED, name)
        return
    row, name = next(iter(unmatched.items()))
    known = [picture.relative.as_posix() for picture in found]
    more = f", and {len(unmatched) - 1} more: {', '.join(list(unmatched.values())[1:5])}" * (len(unmatched) > 1)
    hint = nearest(name, known) + " " if 0 < len(known) <= 100 else ""
    raise UserError(
        Problem(
            place,
            row,
            f"there is no picture {name!r}{more}.",
            f"{hint}Correct file_name, or set images.on_error: skip.",
        )
    )


def _require_columns(field: str, images: Images, found: Iterable[Found]) -> None:
    """A column that the recipe names itself is in some row."""
    rows = [picture.values for picture in found if picture.values]
    known = dict.fromkeys(name for row in rows for name in row)
    for option in ("caption_column", "concept_column"):
        name = getattr(images, option)
        if rows and name != Images.model_fields[option].default and name not in known:
            raise UserError(
                Problem(f"{field}.images.{option}", name, "is in no row of the metadata.", nearest(name, known))
            )


def _add_texts(found: Iterable[Found], texts: Sequence[Path], images: Images, place: str, report: SetReport) -> None:
    """Captions from text files beside the pictures: a.txt, or a.png.txt."""
    if not texts:
        return
    beside = _Beside(texts, found)
    used = set()
    for picture in found:
        text = beside.find(picture.file)
        if text is None or any(picture.values.get(name) is not None for name in _columns(images.caption_column)):
            continue
        used.add(text)
        lines = [line.strip() for line in _text(text, place).splitlines() if line.strip()]
        if len(lines) > 1:  # kohya reads the first, too
            report.note(Noted.FURTHER_LINES, text.name)
        picture.values[images.caption_column] = lines[0] if lines else ""
    for file in texts:
        if file not in used:
            report.note(Noted.UNUSED_CAPTIONS, file.name)


class _Beside:
    """Text files by the pictures that they lie beside."""

    def __init__(self, texts: Iterable[Path], found: Iterable[Found]) -> None:
        self._exact = {_alike(file.with_suffix("")): file for file in texts}  # of both suffixes .txt, which comes last
        self._folded: dict[str, list[Path]] = defaultdict(list)
        for stem, file in self._exact.items():
            self._folded[stem.casefold()].append(file)
        self._pictures = Counter(_alike(picture.file.with_suffix("")).casefold() for picture in found)

    def find(self, picture: Path) -> Path | None:
        """a.txt or a.png.txt; in another case where that names one file and one picture."""
        stem = _alike(picture.with_suffix(""))
        if (text := self._exact.get(stem) or self._exact.get(_alike(picture))) is not None:
            return text
        folded = stem.casefold()
        alone = self._pictures[folded] == 1 and len(self._folded.get(folded, [])) == 1
        return self._folded[folded][0] if alone else None


def _columns(own: str) -> list[str]:
    return list(dict.fromkeys((own, *CAPTION_COLUMNS)))


def _alike(path: Path) -> str:
    return unicodedata.normalize("NFC", path.as_posix())


def _content(file: Path, largest: int, place: str) -> bytes:
    try:
        return read_plain(file, largest)
    except (OSError, ValueError) as error:
        raise UserError(Problem(place, str(file), f"is not readable: {error}.", "Correct or remove it.")) from None


def _text(file: Path, place: str) -> str:
    try:
        return _content(file, LARGEST_CAPTION, place).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            Problem(place, str(file), f"is not readable as text in UTF-8: {error}.", "Save it as UTF-8.")
        ) from None
