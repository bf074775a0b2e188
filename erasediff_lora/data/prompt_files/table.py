"""What a file of prompts is read as: rows of named cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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


def place_of(before: str) -> tuple[int, int]:
    """Line and column of what follows a text."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")
