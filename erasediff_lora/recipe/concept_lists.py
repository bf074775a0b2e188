"""Lists of concepts in files: CSV, TSV, JSONL, YAML, or one name a line.

A recipe gives the file in the place of the list: `concepts: artists.csv`, or `concepts: {file: artists.csv}`. What
stands in it is taken into the recipe, so that a run does not depend on the file.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe.yaml_io import parse_yaml

COLUMNS = ("name", "anchor", "paraphrases", "templates")
SEVERAL = ("paraphrases", "templates")
"""Columns whose cells may hold several, with SEPARATOR between them."""
SEPARATOR = "|"
LISTS = {"forget": COLUMNS, "retain": ("name",)}
"""Table whose `concepts` may be a file -> columns that it may have."""
MOST_CONCEPTS = 5_000
LARGEST = 4 * 2**20
"""Bytes."""
MOST_PROBLEMS = 10
"""That a message lists of one file."""


@dataclass(frozen=True)
class Entry:
    """A concept of a list.

    Attributes:
        line: Where it begins in the file, from 1.
        value: A name, or its columns by name.
    """

    line: int
    value: Any


@dataclass
class Expanded:
    """A recipe's values with the lists in the place of their files.

    Attributes:
        values: The recipe's.
        places: Field, such as 'forget.concepts.3' -> where it stands, such as 'artists.csv, line 5'.
        problems: Of files that cannot be used.
        unread: Tables that they belong to.
    """

    values: dict[str, Any]
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)

    def located(self, problems: Sequence[Problem]) -> list[Problem]:
        """The problems, with lines and columns of files in the place of numbers of entries; of very many the first."""
        moved = [replace(one, field=self._located(one.field), what=self._located(one.what)) for one in problems]
        in_files = [new for new, old in zip(moved, problems, strict=True) if new.field != old.field]
        if not (more := in_files[MOST_PROBLEMS:]):
            return moved
        what = f"{len(more)} further problems of these entries are not shown."
        return [one for one in moved if one not in more] + [Problem("concepts", None, what, "Correct the first ones.")]

    def _located(self, text: str) -> str:
        def place(found: re.Match[str]) -> str:
            known = self.places.get(found[1])
            if known is None:
                return found[0]
            return known + (f", column {found[2]}" if found[2] not in (None, "name") else "")

        return re.sub(r"((?:forget|retain)\.concepts\.\d+)(?:\.(\w+)(?:\.\d+)?)?", place, text)


def beside(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values of a recipe in that folder: paths of lists are relative to it."""
    for table in values.values():
        for key in ("concepts", "vocabulary") if isinstance(table, dict) else ():
            if (name := file_of(table.get(key))) is not None:
                table[key] = str(folder / Path(name).expanduser())
    return values


def file_of(value: Any) -> str | None:
    """The file that stands in the place of a list; None if it is none."""
    if isinstance(value, dict) and value.keys() == {"file"} and isinstance(value["file"], str):
        return value["file"]
    return value if isinstance(value, str) and Path(value).suffix.lower() in READERS else None


def expand(values: dict[str, Any]) -> Expanded:
    """Read the lists that a recipe names, and put what they and the recipe say of a concept where it belongs."""
    found = Expanded(values)
    for name, columns in LISTS.items():
        table: dict[str, Any] = values[name] if isinstance(values.get(name), dict) else {}
        given = table.get("concepts")
        if not isinstance(given, str | dict):
            continue
        try:
            if (file := file_of(given)) is None:
                raise UserError(
                    Problem(
                        f"{name}.concepts",
                        given,
                        "is no list.",
                        f"Write [{given if isinstance(given, str) else 'cat'}], or a file: {SUFFIXES}.",
                    )
                )
            entries = read_list(Path(file), f"{name}.concepts", columns)
        except UserError as error:
            found.problems += error.problems
            found.unread.add(name)
            continue
        values[name] = {**table, "concepts": [entry.value for entry in entries]}
        found.places |= {f"{name}.concepts.{n}": f"{file}, line {entry.line}" for n, entry in enumerate(entries)}
    _move_paraphrases(values)
    return found


def read_list(path: Path, field: str, columns: Sequence[str] = ("name",), most: int = MOST_CONCEPTS) -> list[Entry]:
    """The entries of a file, in their order; whether they are good is not looked at.

    Args:
        path: Its suffix says what it is.
        field: The recipe's field that names it.
        columns: That it may have. With 'name' alone, an entry is a name, else a name or a mapping.
        most: Entries that it may have.

    Raises:
        UserError: If it cannot be read, is too large, or empty.
    """

    def refused(what: str, remedy: str = "Correct it.") -> UserError:
        return UserError(Problem(field, str(path), what, remedy))

    path = path.expanduser()
    try:
        if path.exists() and not path.is_file():
            raise refused("is no file.", "Check the path.")
        if path.stat().st_size > LARGEST:
            raise refused(f"has more than {LARGEST // 2**20} MiB.", "Give a list of names.")
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise refused("there is no such file.", "Check the path; a recipe's are relative to the recipe.") from None
    except OSError as error:
        raise refused(f"cannot be read: {error.strerror or error}.", "Check the path.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise refused(f"line {line} is no UTF-8.", "Save it as UTF-8 (in spreadsheets 'CSV UTF-8').") from None
    try:
        entries = list(READERS[path.suffix.lower()](text, columns))
    except ValueError as error:
        raise refused(f"{' '.join(str(error).split())}.") from None
    if not entries:
        raise refused("lists nothing.", "Write a name a line.")
    if len(entries) > most:
        raise refused(f"has {len(entries)} entries, and {most} are the most.", "Split it.")
    if columns == ("name",):
        entries = [replace(entry, value=_name_in(entry.value)) for entry in entries]
    return entries


def _name_in(value: Any) -> Any:
    return value["name"] if isinstance(value, dict) and value.keys() == {"name"} else value


def _names(text: str, columns: Sequence[str]) -> Iterator[Entry]:
    """One name a line; blank lines and those that begin with # say nothing."""
    for number, line in enumerate(text.split("\n"), 1):
        if (name := line.strip()) and not name.startswith("#"):
            yield Entry(number, name)


def _commas(text: str, columns: Sequence[str]) -> Iterator[Entry]:
    """CSV; spreadsheets of some countries write semicolons."""
    head = next((line for line in text.split("\n") if line.strip() and not line.startswith("#")), "")
    return _cells(text, columns, ";" if ";" in head and "," not in head else ",")


def _tabs(text: str, columns: Sequence[str]) -> Iterator[Entry]:
    return _cells(text, columns, "\t")


def _cells(text: str, columns: Sequence[str], delimiter: str) -> Iterator[Entry]:
    begins = True  # a row: within quotes, blank lines and # belong to the cell
    started = 0

    def lines() -> Iterator[str]:
        nonlocal begins, started
        for number, line in enumerate(text.split("\n"), 1):
            if begins and (not line.strip() or line.lstrip().startswith("#")):
                continue
            if begins:
                begins, started = False, number
            yield f"{line}\n"

    reader = csv.reader(lines(), delimiter=delimiter, strict=True, skipinitialspace=True)
    head: list[str] = []
    try:
        for row in reader:
            cells, begins = [cell.strip() for cell in row], True
            if not head:
                head = _head(cells, columns, started)
                continue
            if len(cells) > len(head):
                what = f"line {started} has {len(cells)} cells and the first {len(head)}"
                raise ValueError(f"{what}; a cell with {delimiter!r} in it is quoted")
            filled = {name: cell for name, cell in zip(head, cells, strict=False) if cell}
            if filled:
                yield Entry(started, filled)
    except csv.Error as error:
        raise ValueError(f"line {started} is no CSV: {error}") from None


def _head(cells: Sequence[str], columns: Sequence[str], line: int) -> list[str]:
    """The titles of the columns."""
    head = [cell.lower() for cell in cells]
    for cell in head:
        if cell not in columns:
            what = f"line {line}, which has the titles of the columns, says {cell!r}"
            raise ValueError(f"{what}; {nearest(cell, columns).rstrip('.')}")
        if head.count(cell) > 1:
            raise ValueError(f"line {line} has the column {cell!r} twice")
    if "name" not in head:
        raise ValueError(f"line {line}, which has the titles of the columns, has no 'name'")
    return head


def _json_lines(text: str, columns: Sequence[str]) -> Iterator[Entry]:
    for entry in _names(text, columns):
        try:
            value = json.loads(entry.value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {entry.line} is no JSON: {error}") from None
        yield _checked(Entry(entry.line, value))


def _yaml(text: str, columns: Sequence[str]) -> Iterator[Entry]:
    values = parse_yaml(text)
    if values is None:
        return
    if not isinstance(values, list):
        raise ValueError("it is no list")
    nodes: Any = yaml.compose(text, yaml.SafeLoader)
    lines = [node.start_mark.line + 1 for node in nodes.value]
    for line, value in zip(lines, values, strict=True):
        yield _checked(Entry(line, value))


def _checked(entry: Entry) -> Entry:
    if not isinstance(entry.value, str | dict):
        raise ValueError(f"line {entry.line} is neither a name nor a mapping with one")
    return entry


READERS: dict[str, Callable[[str, Sequence[str]], Iterator[Entry]]] = {
    ".csv": _commas,
    ".tsv": _tabs,
    ".jsonl": _json_lines,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".txt": _names,
}
"""Suffix -> reader: (text, columns) -> entries. Raises ValueError."""
SUFFIXES = ", ".join(READERS)


def _move_paraphrases(values: dict[str, Any]) -> None:
    """Other names for a concept go where the attack looks for them; cells with several are taken apart."""
    forget: dict[str, Any] = values["forget"] if isinstance(values.get("forget"), dict) else {}
    concepts = forget.get("concepts")
    if not isinstance(concepts, list):
        return
    moved = []
    for concept in concepts:
        if not isinstance(concept, Mapping):
            moved.append(concept)
            continue
        own = {key: _several(value) if key in SEVERAL else value for key, value in concept.items()}
        others = own.pop("paraphrases", None)
        if others:
            _add_paraphrases(values, own.get("name"), others)
        moved.append(own)
    values["forget"] = {**forget, "concepts": moved}


def _several(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(SEPARATOR) if part.strip()]


def _add_paraphrases(values: dict[str, Any], concept: Any, others: Any) -> None:
    evaluation = values.setdefault("evaluation", {})
    table = evaluation.setdefault("paraphrases", {}) if isinstance(evaluation, dict) else None
    if not isinstance(table, dict) or not isinstance(concept, str):
        return
    is_old = any(isinstance(value, list) for value in table.values())  # {concept: names}
    names = table if is_old else table.setdefault("names", {})
    if isinstance(names, dict):
        before = names.get(concept) or []
        names[concept] = list(dict.fromkeys([*before, *others])) if isinstance(others, list) else others
