"""Recipes on the command line: a file, and `--section.field VALUE` over it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora.errors import Problem, UserError

if TYPE_CHECKING:
    from erasediff_lora.recipe import Recipe

FIELDS = (
    "Every field of a recipe is a flag: --training.steps 200, say, with values in YAML.\n"
    "`erasediff-lora recipes fields [SECTION]` lists them with their defaults."
)
"""What `--help` says of them; to list them takes the import of all that brings fields."""


def load_recipe(path: Path, rest: Sequence[str], defaults: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a file or a run's folder; flags win over `defaults`, which win over the file.

    Raises:
        UserError: With all that is wrong with the flags and with the recipe.
    """
    from erasediff_lora.recipe import Recipe

    overrides, problems = _overrides(rest)
    values = dict(defaults or {})
    try:
        if path.is_dir():
            recipe = Recipe.of_run(path, {"output": str(path)} | values | overrides)
        else:
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
    from erasediff_lora.recipe import flags
    from erasediff_lora.recipe.renames import RENAMED
    from erasediff_lora.recipe.yaml_io import parse_yaml

    known = [name for name, _, _ in flags()]
    sections = {name.rpartition(".")[0] for name in known} - {""}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        name, separator, text = word.removeprefix("--").partition("=")
        name = underscored if (underscored := name.replace("-", "_")) in known else name
        if not word.startswith("--"):
            problems.append(Problem("argument", word, "is not expected here.", "Flags are --section.field VALUE."))
            continue
        is_open_table = any(name.startswith(table + ".") for table in ("forget.placeholders", "retain.placeholders"))
        if name not in {*known, *sections, *RENAMED} and not is_open_table:
            problems.append(Problem("argument", f"--{name}", "is no field of the recipe.", _nearest(name, known)))
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


def _nearest(name: str, known: Sequence[str]) -> str:
    """A field that is spelled alike, or where to look: sections alone make no two fields alike."""
    section, _, last = name.rpartition(".")
    alike = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    same = [field for field in known if field.rpartition(".")[0] == section]
    inside = difflib.get_close_matches(last, [field.rpartition(".")[2] for field in same], n=1, cutoff=0.6)
    if inside or alike:
        return f"Did you mean {f'{section}.{inside[0]}'.lstrip('.') if inside else alike[0]!r}?"
    return f"`erasediff-lora recipes fields{f' {section}' if same and section else ''}` lists what there is."
