"""Reading YAML that a stranger may have written."""

from __future__ import annotations

from typing import Any

import yaml

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
