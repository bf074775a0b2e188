"""The files that prompts come in: tables with and without titles, JSON, lines, `datasets`; every row with its line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasediff_lora.data.prompt_files.columns import LINE, is_title, knows_title, spelled

LARGEST = 256 * 2**20
"""Bytes."""
MOST_ROWS = 1_000_000
DELIMITERS = (",", ";", "\t")
_IDENTIFIER = re.compile(r"[\w.:#-]{0,40}")
_OTHER_KINDS = {
    b"version https://git-lfs.github.com/spec/": (
        "is a Git LFS pointer, not the file itself.",
        "Run: git lfs pull.",
    ),
    b"/annex/objects/": ("is a git-annex pointer, not the file itself.", "Run: git annex get."),
    b"PK\x03\x04": ("is a zip archive or a spreadsheet.", "Save the table as CSV in UTF-8."),
    b"\x1f\x8b": ("is compressed.", "Unpack it."),
    b"PAR1": ("is a Parquet file.", "Give the folder that datasets.save_to_disk wrote, or save it as CSV."),
    b"\xff\xfe": ("is UTF-16.", "Save it as UTF-8."),
    b"\xfe\xff": ("is UTF-16.", "Save it as UTF-8."),
    b"%PDF": ("is a PDF.", "Save the table as CSV in UTF-8."),
    b"<!doctype html": ("is a web page, not the file itself.", "Download the raw file."),
    b"<html": ("is a web page, not the file itself.", "Download the raw file."),
}
"""How a file begins that is something else -> what to say."""


class Malformed(ValueError):
    """What is wrong with a file, and where.

    Args:
        line: From 1; 0 where the file as a whole is meant.
        column: Name or number; None where it is the line.
        what: A sentence without subject.
        remedy: Another one.
    """

    def __init__(self, line: int, column: str | int | None, what: str, remedy: str = "") -> None:
        self.line, self.column, self.what, self.remedy = line, column, what, remedy
        super().__init__(what)


@dataclass(frozen=True)
class Row:
    """A row with its values, as they stand there.

    Attributes:
        line: Where it begins, from 1; of `datasets` its number.
        values: By column.
    """

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """All rows of a file.

    Attributes:
        columns: Their names; `LINE` alone where the lines are the prompts.
        rows: In the file's order.
    """

    columns: Sequence[str]
    rows: Sequence[Row]


def read(path: Path, wanted: Sequence[str]) -> Table:
    """The rows of a file or a folder of `datasets`.

    Args:
        path: What was given.
        wanted: Columns that the user names; `LINE` among them reads whole lines.

    Raises:
        Malformed: If it cannot be read; with line and column where they are known.
        OSError: If it is not there.
    """
    if path.is_dir():
        return _dataset(path)
    if path.stat().st_size > LARGEST:
        raise Malformed(0, None, f"has more than {LARGEST // 2**20} MiB.", "Give a part of it.")
    text = _decoded(path.read_bytes())
    first = text.lstrip()[:1]
    suffix = path.suffix.lower()
    if LINE in wanted:
        table = _lines(text)
    elif suffix in (".json", ".jsonl", ".ndjson") or (first in "{[" and first and suffix not in (".csv", ".tsv")):
        table = _json(text)
    else:
        table = _separated(text, "\t" if suffix == ".tsv" else None, wanted)
    if not table.rows:
        raise Malformed(1, 1, "has no row.", "Write a prompt a line.")
    if len(table.rows) > MOST_ROWS:
        raise Malformed(MOST_ROWS, None, f"has more than {MOST_ROWS:,} rows.", "Give a part of it.")
    return table


def _decoded(data: bytes) -> str:
    start = data.removeprefix(b"\xef\xbb\xbf")[:200].lstrip().lower()
    for mark, (what, remedy) in _OTHER_KINDS.items():
        if start.startswith(mark.lower()):
            raise Malformed(1, 1, what, remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _at(error.object[: error.start].decode("utf-8", "replace"))
        raise Malformed(line, column, "is no UTF-8.", "Save it as UTF-8 (in spreadsheets 'CSV UTF-8').") from None
    if text.count("\0") > len(text) // 100:  # searched prompts have one now and then
        raise Malformed(*_at(text[: text.index("\0")]), "is a NUL character: this is no text.", "Save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _at(before: str) -> tuple[int, int]:
    """Line and column of what follows."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _lines(text: str) -> Table:
    """A prompt a line; blank ones say nothing. Quotes around a whole line go."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        shown = line.strip()
        if not shown:
            continue
        if len(shown) > 1 and shown[0] == shown[-1] == '"' and '"' not in shown[1:-1].replace('""', ""):
            shown = shown[1:-1].replace('""', '"')
        rows.append(Row(number, {LINE: shown}))
    return Table([LINE], rows)


def _separated(text: str, delimiter: str | None, wanted: Sequence[str]) -> Table:
    """A table with titles, or else lines."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    choices = [delimiter] if delimiter else [mark for mark in DELIMITERS if mark in first] or [","]
    for mark in choices:
        head = _cells_of(first, mark)
        if head is not None and (knows_title(head) or _names_all(wanted, head)):
            return _titled(text, mark)
    for mark in choices:
        _refuse_unknown_titles(text, mark, _cells_of(first, mark), wanted)
    return _lines(text)


def _cells_of(line: str, delimiter: str) -> list[str] | None:
    try:
        rows = list(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error:
        return None
    return [cell.strip() for cell in rows[0]] if len(rows) == 1 else None


def _names_all(wanted: Sequence[str], head: Sequence[str]) -> bool:
    known = {spelled(cell) for cell in head}
    return bool(wanted) and all(spelled(name) in known for name in wanted)


def _refuse_unknown_titles(text: str, delimiter: str, head: Sequence[str] | None, wanted: Sequence[str]) -> None:
    """A table whose titles say nothing to us is no list of prompts with commas."""
    if head is None or len(head) < 2:
        if wanted:
            raise Malformed(1, 1, f"has no titles with the column {wanted[0]!r}.", "Correct --columns, or omit it.")
        return
    body = [line for line in text.split("\n") if line.strip()][1:]
    cells = [_cells_of(line, delimiter) for line in body[:1000]]
    is_table = all(row is not None and len(row) == len(head) for row in cells)
    has_prose = any(" " in cell for row in cells if row for cell in row)
    if wanted or (is_table and has_prose and all(_IDENTIFIER.fullmatch(cell) for cell in head)):
        raise Malformed(
            1,
            1,
            f"has none of the usual titles in {', '.join(head[:12])}.",
            f"Say which one: --columns prompt={next((cell for cell in head if cell), head[0])}, or prompt={LINE} for"
            " whole lines.",
        )


def _titled(text: str, delimiter: str) -> Table:
    """A table whose first line has the titles."""
    lines = (f"{line}\n" for line in text.split("\n"))  # other separators of Unicode belong to a cell
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    head: list[str] = []
    rows: list[Row] = []
    start = 1
    try:
        for cells in reader:
            start, begins = reader.line_num + 1, start
            if not any(cell.strip() for cell in cells):
                continue
            if not head:
                head = _titles(cells, begins)
                continue
            if len(cells) != len(head):
                column = head[len(cells)] if len(cells) < len(head) else len(head) + 1
                what = f"has {len(cells)} cells, and the titles {len(head)}."
                raise Malformed(begins, column, what, f"Put cells with {delimiter!r} in them in double quotes.")
            rows.append(Row(begins, dict(zip(head, cells, strict=True))))
    except csv.Error as error:
        raise Malformed(start, 1, f"is no CSV: {error}.", "Quote cells with double quotes, doubled inside.") from None
    return Table(head, rows)


def _titles(cells: Sequence[str], line: int) -> list[str]:
    head = [cell.strip() for cell in cells]
    for number, name in enumerate(head, 1):
        if name and head.count(name) > 1:
            raise Malformed(line, number, f"has the title {name!r} twice.", "Rename one.")
    return [name or f"Unnamed: {number}" for number, name in enumerate(head)]


def _json(text: str) -> Table:
    start = _past_space(text, 0)
    if start < len(text) and text[start] == "[":
        return _of_values([(text.count("\n", 0, at) + 1, value) for at, value in _elements(text, start)])
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and (len(lines) > 1 or not text.lstrip().startswith("{")) and _is_json(lines[0][1]):
        return _of_values([(number, _parsed(line, number)) for number, line in lines])
    whole = _parsed(text.strip(), _at(text[:start])[0])
    if isinstance(whole, dict) and any(is_title(name) and isinstance(whole[name], str) for name in whole):
        return _of_values([(1, whole)])
    return _of_table(text, start, whole)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.rstrip().endswith("}")  # a damaged line of JSONL, which is told below
    return True


def _parsed(text: str, line: int) -> Any:
    return _decode(lambda: json.loads(text), line - 1, text)


def _decode(parse: Callable[[], Any], offset: int, text: str) -> Any:
    try:
        return parse()
    except json.JSONDecodeError as error:
        raise Malformed(error.lineno + offset, error.colno, f"is no JSON: {error.msg}.", "Correct it.") from None
    except (ValueError, RecursionError) as error:
        what = "nests too deep" if isinstance(error, RecursionError) else str(error)
        raise Malformed(1 + offset, 1, f"is no JSON: {what}.", "Correct it.") from None


def _elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Offset and value of the elements of the list that begins there."""
    decoder = json.JSONDecoder()
    at = _past_space(text, start + 1)
    if text[at : at + 1] == "]":
        return
    while True:
        value, end = _decode(lambda at=at: decoder.raw_decode(text, at), 0, text)  # type: ignore[misc]
        yield at, value
        at = _past_space(text, end)
        if text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                raise Malformed(*_at(text[: at + 1]), "is no JSON: something follows the list.", "Correct it.")
            return
        if text[at : at + 1] != ",":
            raise Malformed(*_at(text[:at]), "is no JSON: expected ',' or ']'.", "Correct it.")
        at = _past_space(text, at + 1)


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n":
        at += 1
    return at


def _of_table(text: str, start: int, whole: Any) -> Table:
    """An object of columns, as pandas writes them, or one that holds a list of rows."""
    if not isinstance(whole, dict):
        raise Malformed(1, 1, "is neither a list nor an object.", 'Write [{"prompt": "…"}, …].')
    columns = {name: list(v.values()) if isinstance(v, dict) else v for name, v in whole.items()}
    lists = {name: value for name, value in columns.items() if isinstance(value, list)}
    if len(lists) == len(columns) and any(is_title(name) for name in lists):
        if len(lengths := {len(value) for value in lists.values()}) > 1:
            raise Malformed(1, next(iter(lists)), f"has columns of {sorted(lengths)} rows.", "Make them as long.")
        cells = (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
        return Table(list(lists), [Row(number, values) for number, values in enumerate(cells, 1)])
    named = [value for value in lists.values() if value and isinstance(value[0], dict | str)]
    if len(named) != 1:
        raise Malformed(*_at(text[:start]), "holds no list of prompts, or several.", 'Write [{"prompt": "…"}, …].')
    return _of_values(list(enumerate(named[0], 1)))


def _of_values(values: Sequence[tuple[int, Any]]) -> Table:
    columns: dict[str, None] = {}
    rows = []
    for line, value in values:
        given = {LINE: value} if isinstance(value, str) else value
        if not isinstance(given, dict):
            raise Malformed(line, 1, "is neither a prompt nor an object with one.", 'Write {"prompt": "…"}.')
        columns |= dict.fromkeys(given)
        rows.append(Row(line, given))
    if LINE in columns and len(columns) > 1:
        odd = next(row.line for row in rows if LINE in row.values)
        raise Malformed(odd, 1, "is a string among objects.", 'Write {"prompt": "…"}.')
    return Table(list(columns), rows)


def _dataset(folder: Path) -> Table:
    """What `datasets.save_to_disk` wrote; its pictures, if there are any, stay unopened."""
    try:
        import datasets
    except ImportError:
        remedy = "Run: pip install 'erasediff-lora[datasets]'."
        raise Malformed(0, None, "is a folder, which takes the datasets package.", remedy) from None
    if not any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        remedy = "Give a file, or a folder that datasets.save_to_disk wrote."
        raise Malformed(0, None, "is a folder, and no dataset.", remedy)
    try:
        loaded: Any = datasets.load_from_disk(str(folder))
    except Exception as error:
        what = f"cannot be loaded: {' '.join(str(error).split())[:200]}."
        raise Malformed(0, None, what, "Save it again with datasets.save_to_disk.") from None
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for split, data in parts.items():
        plain = [name for name, kind in data.features.items() if type(kind).__name__ in ("Value", "ClassLabel")]
        named = {name: data.features[name] for name in plain if hasattr(data.features[name], "int2str")}
        columns |= dict.fromkeys(plain)
        for values in data.select_columns(plain):
            known = {name: values[name] for name in plain} | {
                name: kind.int2str(values[name]) for name, kind in named.items() if values[name] is not None
            }
            rows.append(Row(len(rows) + 1, known if not split else {"split": split} | known))
    if any("split" in row.values for row in rows):
        columns["split"] = None
    return Table(list(columns), rows)
