"""The grid of a sweep: which fields of a recipe vary, over which values, and what each combination is called."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe.yaml_io import parse_yaml

FLAG = "--grid"
LONGEST = 120
"""Bytes of a name: file systems take 255 of them, and files in the folder need some of a path's."""
MOST_RUNS = 10_000

Grid = Mapping[str, Sequence[Any]]
"""Field of the recipe -> its values."""


def parse_grid(words: Sequence[str]) -> Grid:
    """The grid that `field=value,value,…` words describe; values are YAML.

    >>> parse_grid(["training.seed=0,1", "objective.eta=0.1,0.3"])
    {'training.seed': [0, 1], 'objective.eta': [0.1, 0.3]}

    Raises:
        UserError: If a word is none, names a field twice, varies what a sweep chooses itself, or they make too many
            runs.
    """
    grid: dict[str, Sequence[Any]] = {}
    problems = []
    for word in words:
        field, separator, text = word.removeprefix("--").partition("=")
        field = field.strip()
        try:
            values = parse_yaml(f"[{text}]") if text.strip() else []
        except ValueError:
            values = []
        if not separator or not field or not values:
            problems.append(Problem(FLAG, word, "is no field with values.", "Write training.seed=0,1,2."))
        elif field == "output":
            problems.append(Problem(FLAG, word, "each run has a folder of its own in the sweep's.", "Use --folder."))
        elif field in grid:
            problems.append(Problem(FLAG, word, "names a field a second time.", "Give all of its values at once."))
        grid[field] = values
    if (runs := math.prod(map(len, grid.values()))) > MOST_RUNS:
        what = f"makes {runs:,} runs, and {MOST_RUNS:,} are the most."
        problems.append(Problem(FLAG, " ".join(words), what, "Leave values out."))
    if problems:
        raise UserError(*problems)
    return grid


def combinations(grid: Grid) -> dict[str, dict[str, Any]]:
    """Name -> value of each field, for every combination; names are fit for folders."""
    short = {field: field.rpartition(".")[2] for field in grid}
    alike = {name for name in short.values() if list(short.values()).count(name) > 1}
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        label = "_".join(
            f"{field if short[field] in alike else short[field]}-{_slug(value)}" for field, value in chosen.items()
        )
        label, number = label.encode()[:LONGEST].decode(errors="ignore").rstrip("-_."), 2
        unique = label
        while unique.lower() in {name.lower() for name in found}:  # some file systems take both for one
            unique, number = f"{label}-{number}", number + 1
        found[unique] = chosen
    return found


def _slug(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "none"
