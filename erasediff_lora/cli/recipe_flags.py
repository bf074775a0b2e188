"""Recipes on the command line: a file, and `--section.field VALUE` over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe import Recipe, flags
from erasediff_lora.recipe.yaml_io import parse_yaml
from erasediff_lora.storage.run_folder import RECIPE_FILE


def load_recipe(path: Path, rest: Sequence[str], defaults: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a file or a run's folder; flags win over `defaults`, which win over the file."""
    overrides, problems = _overrides(rest)
    values = dict(defaults or {})
    if path.is_dir():
        path, values = path / RECIPE_FILE, {"output": str(path)} | values
    try:
        recipe = Recipe.load(path, values | overrides)
    except UserError as error:
        raise UserError(*problems, *error.problems) from None
    if problems:
        raise UserError(*problems)
    return recipe


def overrides_from(arguments: Sequence[str]) -> dict[str, Any]:
    """The recipe fields that flags set.

    Raises:
        UserError: If a flag is unknown or has no value.
    """
    values, problems = _overrides(arguments)
    if problems:
        raise UserError(*problems)
    return values


def _overrides(rest: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The values of `--a.b VALUE` and `--a.b=VALUE`, and what is wrong with the rest."""
    known = [name for name, _, _ in flags()]
    sections = {name.rpartition(".")[0] for name in known} - {""}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        name, separator, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            problems.append(Problem("argument", word, "is not expected here.", "Flags are --section.field VALUE."))
            continue
        is_open_table = any(name.startswith(table + ".") for table in ("forget.placeholders", "retain.placeholders"))
        if name not in known and name not in sections and not is_open_table:
            problems.append(Problem("argument", f"--{name}", "is no field of the recipe.", nearest(name, known)))
            if not separator and words and not words[0].startswith("--"):
                words.pop(0)
            continue
        if not separator:
            if not words:
                problems.append(Problem("argument", f"--{name}", "has no value.", f"Write --{name} VALUE."))
                continue
            text = words.pop(0)
        try:
            values[name] = parse_yaml(text)
        except ValueError:
            problems.append(Problem("argument", f"--{name}", f"has an unreadable value {text!r}.", "Quote it as YAML."))
    return values, problems


def _field_help() -> str:
    return "\n".join(f"  --{name:34} {description} [{default}]" for name, description, default in flags())


EPILOG = "recipe fields, settable as --NAME VALUE (values are YAML):\n" + _field_help()
