"""Tables of cells with separators between them: CSV, TSV and their kin, with titles or without."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence

from erasediff_lora.data.prompt_files.columns import LINE, knows_title, spelled
from erasediff_lora.data.prompt_files.table import Malformed, Row, Table

DELIMITERS = (",", ";", "\t", "|")
_IDENTIFIER = re.compile(r"[\w.:#-]{0,40}")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.IGNORECASE)


def read(text: str, suffix: str, wanted: Sequence[str]) -> Table | None:
    """A table with titles, or one without whose columns are counted; None where its lines are prompts.

    Args:
        text: The file's, with newlines alone between its lines.
        suffix: Of its name, in lower case.
        wanted: Columns that the user names.

    Raises:
        Malformed: If it is a table, and not one that can be read.
    """
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
    return None


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
