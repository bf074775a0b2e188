"""Prompts in JSON: lists, lines, objects of columns, of rows, of splits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from erasediff_lora.data.prompt_files.columns import LINE, SPLITS, is_title, knows_title, spelled
from erasediff_lora.data.prompt_files.table import Malformed, Row, Table, place_of


def read(text: str) -> Table:
    """The rows of a text in JSON, or in JSON lines.

    Raises:
        Malformed: If it is neither, or holds no list of prompts.
    """
    start = _past_space(text, 0)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    is_list = text[start : start + 1] == "["
    if (len(lines) > 1 or not (is_list or text[start : start + 1] == "{")) and _is_json(
        lines[0][1], damaged=not is_list
    ):
        return _of_values([(number, _parsed(line, number)) for number, line in lines])
    if is_list:
        return _of_values([(text.count("\n", 0, at) + 1, value) for at, value in _elements(text, start)])
    whole = _parsed(text.strip(), place_of(text[:start])[0])
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
        value, end = _decode(lambda at=at: decoder.raw_decode(text, at), 0, place_of(text[:at]))  # type: ignore[misc]
        yield at, value
        at = _past_space(text, end)
        if text[at : at + 1] == "]":
            if text[at + 1 :].strip():
                raise Malformed(*place_of(text[: at + 1]), "is no JSON: something follows the list.", "Correct it.")
            return
        if text[at : at + 1] != ",":
            raise Malformed(*place_of(text[:at]), "is no JSON: expected ',' or ']'.", "Correct it.")
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
        raise Malformed(*place_of(text[:start]), what, 'Write [{"prompt": "…"}, …].')
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
