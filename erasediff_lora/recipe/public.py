"""The recipe as others may see it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from erasediff_lora.recipe.recipe import Recipe

SENSITIVE = (
    *(
        "nud",
        "naked",
        "nsfw",
        "porn",
        "sex",
        "erotic",
        "hentai",
        "topless",
        "undress",
        "unclothed",
        "genital",
        "breast",
    ),
    *("gore", "blood", "violen", "corpse"),
)
"""Parts of the names of concepts whose pictures not everybody wants to see."""

PATHS = (
    ("model", "config"),
    ("model", "network"),
    ("forget", "images"),
    ("retain", "images"),
    ("retain", "vocabulary"),
)
"""Tables and fields with paths."""


def is_sensitive(concepts: Iterable[str]) -> bool:
    """Whether pictures of concepts of these names are blurred unless the recipe says otherwise."""
    return any(word in concept.lower() for concept in concepts for word in SENSITIVE)


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe without this machine's folders."""
    values: dict[str, Any] = recipe.model_dump(mode="json", exclude={"output", "cache"})
    values["model"]["base"] = recipe.model.public_name
    values["model"]["parts"] = {name: file.name for name, file in recipe.model.parts.items()}
    values["evaluation"] = recipe.evaluation.without_folders()
    for table, key in PATHS:
        found = values[table][key]
        if isinstance(found, dict):
            for name in ("folder", "dataset"):
                if found[name] and Path(found[name]).expanduser().exists():
                    found[name] = Path(found[name]).name
        elif found:
            values[table][key] = Path(found).name
    return values
