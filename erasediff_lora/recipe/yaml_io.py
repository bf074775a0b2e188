"""Reading YAML that a stranger may have written, and changing what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.inside import read_plain

LONGEST, MOST_VALUES, DEEPEST = 2**20, 100_000, 50
"""Characters; values once aliases are unfolded; levels."""


def parse_yaml(text: str) -> Any:
    """YAML of plain values, and not more of it than a person would write.

    Raises:
        ValueError: If it is no YAML, or too long, too deep, or unfolds to too much.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters, and {LONGEST} are plenty")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST}")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    todo, seen = [values], 0
    while todo:
        value = todo.pop()
        seen += 1
        if seen > MOST_VALUES:  # by aliases: ten lines can unfold to billions
            raise ValueError(f"it unfolds to more than {MOST_VALUES} values")
        children = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        if isinstance(children, list | set | tuple):
            todo += children
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: If there is no such file, or it is not a YAML mapping.
    """
    try:
        values = parse_yaml(read_plain(path, 4 * LONGEST).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(Problem("recipe", str(path), "there is no such file.", "Check the path.")) from None
    except (OSError, ValueError) as error:
        raise UserError(Problem("recipe", str(path), f"is not readable as YAML: {error}", "Correct it.")) from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(Problem("recipe", str(path), "is not a mapping.", "Start from one of the files in recipes/."))
    return values


def overlay(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Set dotted keys in a nested mapping."""
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        table = values
        for parent in parents:
            if not isinstance(table.get(parent), dict):
                table[parent] = {}
            table = table[parent]
        table[last] = value
    return values
