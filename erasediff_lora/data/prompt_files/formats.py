"""The files that prompts come in: tables with and without titles, JSON, lines, `datasets`; every row with its line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasediff_lora.data.prompt_files.columns import LINE, SPLITS, is_title, knows_title, spelled

LARGEST = 256 * 2**20
"""Bytes."""
MOST_ROWS = 1_000_000
DELIMITERS = (",", ";", "\t", "|")
_IDENTIFIER = re.compile(r"[\w.:#-]{0,40}")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.IGNORECASE)
_LIKE_JSON = re.compile(r"\s*(\[\s*([\"{\]]|\[\s*[\"\d])|\{\s*[\"}])")
"""How JSON begins, whatever the file is called; '[a cat]' and '{masterpiece} cat' are prompts."""
_OTHER_KINDS = {
    b"version https://git-lfs.github.com/spec/": (
        "is a Git LFS pointer, not the file itself.",
        "Run: git lfs pull.",
    ),
    b"/annex/objects/": ("is a git-annex pointer, not the file itself.", "Run: git annex get."),
    b"version https://hawser.github.com/spec/": ("is a Git LFS pointer, not the file itself.", "Run: git lfs pull."),
    b"# xet version": ("is a pointer of git-xet, not the file itself.", "Run: git xet checkout."),
    b"<?xml": ("is XML.", "Save the table as CSV in UTF-8."),
    b"BZh": ("is compressed.", "Unpack it."),
    b"\xfd7zXZ": ("is compressed.", "Unpack it."),
    b"\x28\xb5\x2f\xfd": ("is compressed.", "Unpack it."),
    b"\xd0\xcf\x11\xe0": ("is a spreadsheet.", "Save the table as CSV in UTF-8."),
    b"ARROW1": ("is an Arrow file.", "Give the folder that datasets.save_to_disk wrote, or save it as CSV."),
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
_ANSWERS = (b"404: not found", b"not found", b"entry not found", b"invalid username or password.")
"""What servers send in the place of a file."""


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
    if path.exists() and not path.is_file():  # a pipe or a device, which may never end
        raise Malformed(0, None, "is no file.", "Give a file.")
    if path.stat().st_size > LARGEST:
        raise Malformed(0, None, f"has more than {LARGEST // 2**20} MiB.", "Give a part of it.")
    text = _decoded(path.read_bytes())
    suffix = path.suffix.lower()
    if LINE in wanted:
        table = _lines(text)
    elif suffix in (".json", ".jsonl", ".ndjson") or _LIKE_JSON.match(text):
        table = _json(text)
    elif suffix in (".yaml", ".yml"):
        raise Malformed(1, 1, "is YAML.", "Save it as CSV or JSON.")
    else:
        table = _separated(text, suffix, wanted)
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
    if start.strip() in _ANSWERS:
        raise Malformed(1, 1, "is a server's answer, not the file itself.", "Download the raw file.")
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


def _separated(text: str, suffix: str, wanted: Sequence[str]) -> Table:
    """A table with titles, one without whose columns are counted, or else lines."""
    text, delimiter = _past_preamble(text)
    first = next((line for line in text.split("\n") if line.strip()), "")
    if delimiter is None and suffix == ".tsv":
        delimiter = "\t"
    choices = [delimiter] if delimiter else [mark for mark in DELIMITERS if mark in first] or [","]
    for mark in choices:
        head = _cells_of(first, mark)
        if head is not None and (knows_title(head, suffix in (".csv", ".tsv")) or _names_all(wanted, head)):
            return _table(text, mark)
    for mark in choices:
        if (head := _cells_of(first, mark)) is None or len(head) < 2:
            continue
        has_titles = _looks_titled(text, mark, head)
        if wanted and not has_titles and all(name.isdecimal() for name in wanted):
            return _table(text, mark, [str(number) for number in range(1, len(head) + 1)])
        if wanted or has_titles:
            first_title = next((cell for cell in head if cell), head[0])
            raise Malformed(
                1,
                1,
                f"has none of the usual titles in {', '.join(head[:12])}.",
                f"Say which one: --columns prompt={first_title}, or prompt={LINE} for whole lines.",
            )
        if column := _untitled(text, mark):
            raise Malformed(
                1,
                column,
                "holds numbers or cells of a table, and no column has a title.",
                f"Count columns: --columns prompt=1 seed=2, say; or read whole lines: prompt={LINE}.",
            )
    if wanted:
        raise Malformed(1, 1, f"has no titles with the column {wanted[0]!r}.", "Correct --columns, or omit it.")
    return _lines(text)


def _past_preamble(text: str) -> tuple[str, str | None]:
    """The text with blank lines for what stands before the titles, and the delimiter that Excel's `sep=;` names."""
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if filled and (named := re.fullmatch(r"\"?sep=(.)\"?", lines[filled[0]].rstrip(" "))):
        return "\n".join(["", *lines[filled[0] + 1 :]]), named[1]
    start = next((number for number in filled if not lines[number].startswith("#")), 0)
    heads = (_cells_of(lines[start], mark) for mark in DELIMITERS)
    if 0 < start < filled[-1] and any(head is not None and len(head) > 1 and knows_title(head) for head in heads):
        return "\n".join([""] * start + lines[start:]), None
    return text, None


def _cells_of(line: str, delimiter: str) -> list[str] | None:
    try:
        rows = list(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error:
        return None
    return [cell.strip() for cell in rows[0]] if len(rows) == 1 else None


def _names_all(wanted: Sequence[str], head: Sequence[str]) -> bool:
    known = {spelled(cell) for cell in head}
    return bool(wanted) and all(spelled(name) in known for name in wanted)


def _sample(text: str, delimiter: str) -> list[list[str]]:
    """The first rows as cells; none if that is no table."""
    try:
        rows = [row for row, _ in zip(_rows(text, delimiter), range(1000), strict=False)]
    except csv.Error:
        return []
    return [cells for _, cells in rows]


def _numeric(rows: Sequence[Sequence[str]]) -> int | None:
    """The first column, from 1, that has nothing but numbers in all of several rows."""
    columns = range(min(map(len, rows), default=0))
    both = (column for column in columns if all(_NUMBER.fullmatch(row[column]) for row in rows))
    return next((column + 1 for column in both), None) if len(rows) > 1 else None


def _looks_titled(text: str, delimiter: str, head: Sequence[str]) -> bool:
    """Whether the first line has titles that say nothing to us: that is no list of prompts with commas."""
    body = _sample(text, delimiter)[1:]
    has_prose = any(" " in cell for row in body for cell in row)
    if all(len(row) == len(head) for row in body) and has_prose and all(map(_IDENTIFIER.fullmatch, head)):
        return True
    column = _numeric(body)
    return column is not None and column <= len(head) and not _NUMBER.fullmatch(head[column - 1])


def _untitled(text: str, delimiter: str) -> int | None:
    """The column by which one sees that lines are those of a table, and no prompts."""
    rows = _sample(text, delimiter)
    is_table = len(rows) > 1 and delimiter == "\t" and len({len(row) for row in rows}) == 1
    return _numeric(rows) or (1 if is_table else None)


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of the rows in which anything stands.

    Raises:
        csv.Error: If it is no table; the line is that of the row that was begun.
    """
    lines = (f"{line}\n" for line in text.split("\n"))  # other separators of Unicode belong to a cell
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise csv.Error(str(error), start) from None
        start, begins = reader.line_num + 1, start
        if any(cell.strip() for cell in cells):
            yield begins, cells


def _table(text: str, delimiter: str, head: Sequence[str] = ()) -> Table:
    """A table, with `head` or the titles in its first line."""
    rows: list[Row] = []
    try:
        for line, cells in _rows(text, delimiter):
            if not head:
                head = _titles(cells, line)
                continue
            if len(cells) != len(head):
                column = head[len(cells)] if len(cells) < len(head) else len(head) + 1
                what = f"has {len(cells)} cells, and the titles {len(head)}."
                raise Malformed(line, column, what, f"Put cells with {delimiter!r} in them in double quotes.")
            rows.append(Row(line, dict(zip(head, cells, strict=True))))
    except csv.Error as error:
        what, line = error.args
        raise Malformed(line, 1, f"is no CSV: {what}.", "Quote cells with double quotes, doubled inside.") from None
    return Table(head, rows)


def _titles(cells: Sequence[str], line: int) -> list[str]:
    head = [cell.strip() for cell in cells]
    for number, name in enumerate(head, 1):
        if name and head.count(name) > 1:
            raise Malformed(line, number, f"has the title {name!r} twice.", "Rename one.")
    for number, name in enumerate(head):
        head[number] = name or f"Unnamed: {number}" + ".1" * (f"Unnamed: {number}" in head)
    return head


def _json(text: str) -> Table:
    start = _past_space(text, 0)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    is_list = text[start : start + 1] == "["
    if (len(lines) > 1 or not (is_list or text[start : start + 1] == "{")) and _is_json(
        lines[0][1], damaged=not is_list
    ):
        return _of_values([(number, _parsed(line, number)) for number, line in lines])
    if is_list:
        return _of_values([(text.count("\n", 0, at) + 1, value) for at, value in _elements(text, start)])
    whole = _parsed(text.strip(), _at(text[:start])[0])
    if isinstance(whole, dict) and _has_prompt(whole):
        return _of_values([(1, whole)])
    return _of_table(text, start, whole)


def _is_json(line: str, damaged: bool) -> bool:
    """Whether a line is JSON by itself, or a damaged line of JSONL, which is told later."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return damaged and line.rstrip().endswith("}")
    return True


def _parsed(text: str, line: int) -> Any:
    return _decode(lambda: json.loads(text, object_pairs_hook=_once), line - 1, (line, 1))


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object, none of whose keys is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"it has the key {twice!r} twice")
    return found


def _decode(parse: Callable[[], Any], offset: int, place: tuple[int, int]) -> Any:
    """What is parsed.

    Args:
        parse: Does it.
        offset: Lines before the text that errors are counted in.
        place: Line and column of errors that have none.
    """
    try:
        return parse()
    except json.JSONDecodeError as error:
        raise Malformed(error.lineno + offset, error.colno, f"is no JSON: {error.msg}.", "Correct it.") from None
    except (ValueError, RecursionError) as error:
        what = "nests too deep" if isinstance(error, RecursionError) else str(error)
        raise Malformed(*place, f"is no JSON: {what}.", "Correct it.") from None


def _elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Offset and value of the elements of the list that begins there."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    at = _past_space(text, start + 1)
    if text[at : at + 1] == "]":
        return
    while True:
        value, end = _decode(lambda at=at: decoder.raw_decode(text, at), 0, _at(text[:at]))  # type: ignore[misc]
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
    """An object of columns, as pandas writes them, of rows by number, of lists by split, or one that holds a list."""
    if not isinstance(whole, dict):
        raise Malformed(1, 1, "is neither a list nor an object.", 'Write [{"prompt": "…"}, …].')
    while not (rows := _rows_by_number(whole)) and len(whole) == 1 and not any(map(is_title, whole)):
        if not isinstance(inside := next(iter(whole.values())), dict):
            break
        whole = inside
    if rows:
        return _of_values(list(enumerate(rows, 1)))
    columns = {name: list(v.values()) if isinstance(v, dict) else v for name, v in whole.items()}
    lists = {name: value for name, value in columns.items() if isinstance(value, list)}
    if whole.keys() >= {"columns", "data"} and isinstance(whole["data"], list) and "columns" in lists:
        return _of_values(list(enumerate([whole["columns"], *whole["data"]], 1)))
    is_columns = any(is_title(name) and not (v and isinstance(v[0], dict | list)) for name, v in lists.items())
    if len(lists) == len(columns) and is_columns:
        if len(lengths := {len(value) for value in lists.values()}) > 1:
            raise Malformed(1, next(iter(lists)), f"has columns of {sorted(lengths)} rows.", "Make them as long.")
        cells = (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
        return Table(list(lists), [Row(number, values) for number, values in enumerate(cells, 1)])
    named = {name: value for name, value in lists.items() if value and isinstance(value[0], dict | str | list)}
    titled = [value for value in named.values() if isinstance(value[0], dict) and any(map(is_title, value[0]))]
    if len(named) > 1 and {spelled(name) for name in named} <= {word for words in SPLITS.values() for word in words}:
        parts = (
            {"split": split} | (value if isinstance(value, dict) else {"prompt": value})
            for split, values in named.items()
            for value in values
        )
        return _of_values(list(enumerate(parts, 1)))
    if len(named) != 1 and len(titled) != 1:
        which = f" ({', '.join(list(named)[:12])})" if named else ""
        what = f"holds no list of prompts, or several{which}."
        raise Malformed(*_at(text[:start]), what, 'Write [{"prompt": "…"}, …].')
    return _of_values(list(enumerate(titled[0] if len(titled) == 1 else next(iter(named.values())), 1)))


def _has_prompt(row: Mapping[str, Any]) -> bool:
    return any(is_title(name) and isinstance(value, str) for name, value in row.items())


def _rows_by_number(whole: Mapping[str, Any]) -> list[Any]:
    """The rows of an object that has them by their number or name; none if it is another one."""
    values = list(whole.values())
    if values and all(isinstance(value, dict) and _has_prompt(value) for value in values):
        return [{"case_number": name} | value for name, value in whole.items()]
    return values if all(name.isdecimal() for name in whole) and all(isinstance(v, str) for v in values) else []


def _of_values(values: Sequence[tuple[int, Any]]) -> Table:
    if values and all(isinstance(value, list) for _, value in values):
        values = _of_lists(values)
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


def _of_lists(values: Sequence[tuple[int, list[Any]]]) -> list[tuple[int, Any]]:
    """Rows that are lists of cells, as objects: by the titles in the first one, or else by their number."""
    head = [str(cell) for cell in values[0][1]]
    for line, cells in values:
        if len(cells) != len(head):
            raise Malformed(line, 1, f"has {len(cells)} cells, and the first one {len(head)}.", "Make them as long.")
    if len(head) == 1:
        return [(line, cells[0]) for line, cells in values]
    if knows_title(head):
        return [(line, dict(zip(head, cells, strict=True))) for line, cells in values[1:]]
    return [(line, {str(number): cell for number, cell in enumerate(cells, 1)}) for line, cells in values]


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
