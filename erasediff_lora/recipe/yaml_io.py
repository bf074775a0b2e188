"""Reading YAML that a stranger may have written, and changing what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.inside import read_plain

LONGEST, MOST_VALUES, DEEPEST = 2**20, 100_000, 50
"""Characters; values once aliases are unfolded; levels."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values. Refuses keys that stand twice, of which YAML would take the last, and what takes long to read."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._seen: set[int] = set()
        self._merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in what `<<` refers to, as long as it does not multiply.

        Raises:
            ValueError: If a key stands there twice, or too much is taken in.
        """
        if id(node) not in self._seen:  # the second time it has what was taken in
            self._seen.add(id(node))
            self._require_distinct(node)
        super().flatten_mapping(node)
        self._merged += len(node.value)
        if self._merged > MOST_VALUES:
            raise ValueError(f"it unfolds to more than {MOST_VALUES} values")

    @staticmethod
    def _require_distinct(node: yaml.MappingNode) -> None:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    raise ValueError(f"{key.value!r} stands there twice, in line {lines[name]} and in line {line}")
                lines[name] = line


def _of_base_ten(construct: Callable[[Any, yaml.ScalarNode], Any]) -> Callable[[Loader, yaml.ScalarNode], Any]:
    def constructed(loader: Loader, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:
            raise ValueError(f"{node.value[:40]} is a number of base 60 in YAML: put it in quotes if it is a text")
        return construct(loader, node)

    return constructed


Loader.add_constructor("tag:yaml.org,2002:int", _of_base_ten(Loader.construct_yaml_int))
Loader.add_constructor("tag:yaml.org,2002:float", _of_base_ten(Loader.construct_yaml_float))


def parse_yaml(text: str) -> Any:
    """YAML of plain values, and not more of it than a person would write.

    Raises:
        ValueError: If it is no YAML, or too long, too deep, or unfolds to too much.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters, and {LONGEST} are plenty")
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=Loader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested deeper than {DEEPEST}")
            if number > 2 * MOST_VALUES:  # a collection has a beginning and an end
                raise ValueError(f"it has more than {MOST_VALUES} values")
        values = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (ArithmeticError, LookupError, AttributeError, TypeError) as error:  # of constructors, such as that of !!int
        raise ValueError("a value is not what its tag says") from error
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
        values = parse_yaml(read_plain(path, 4 * LONGEST).decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(Problem("recipe", str(path), "there is no such file.", "Check the path.")) from None
    except UnicodeDecodeError:
        raise UserError(Problem("recipe", str(path), "is no text in UTF-8.", "Save it as UTF-8.")) from None
    except (OSError, ValueError) as error:
        what = f"is not readable as YAML: {str(error).rstrip('.')}."
        raise UserError(Problem("recipe", str(path), what, "Correct it.")) from None
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
