"""What can be wrong within one of the two sets of a recipe."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import ImageColor

from erasediff_lora.errors import Problem, nearest
from erasediff_lora.recipe.tables import Concept, ForgetSet, Images, Placeholders, RetainSet
from erasediff_lora.recipe.templates import names_in


def check_set(name: str, data: ForgetSet | RetainSet) -> Iterator[Problem]:
    """Problems of the templates, the placeholders and the pictures of 'forget' or 'retain'."""
    own = [(f"{name}.concepts.{i}", c) for i, c in enumerate(data.concepts) if isinstance(c, Concept)]
    if not data.templates and any(concept.templates is None for _, concept in own):
        remedy = "Add prompts with {concept}, or templates to every concept."
        yield Problem(f"{name}.templates", data.templates, "is required.", remedy)
    yield from _templates(name, name, data, data.templates, data.placeholders)
    yield from _placeholders(name, data.placeholders)
    for place, concept in own:
        placeholders = concept.placeholders or {}
        yield from _templates(name, place, data, concept.templates or [], data.placeholders | placeholders)
        yield from _placeholders(place, placeholders)
    if data.images:
        yield from _images(name, data, data.images)


def check_places(fields: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of what is written where pictures are read, so that the next run would be trained on it.

    Args:
        fields: Of the recipe, those that are valid by themselves.
    """
    places = {name: fields[name].absolute() for name in ("output", "cache") if name in fields}
    for name, place in places.items():
        if os.path.realpath(place) == Path(place.anchor).as_posix():
            yield Problem(name, str(fields[name]), "is the root of a disk.", "Choose a folder in it.")
    if len(places) == 2 and len({os.path.realpath(place) for place in places.values()}) == 1:
        what = "is the cache as well, whose pictures would be taken for the run's."
        yield Problem("output", str(fields["output"]), what, "Choose another folder for one of them.")
    for kind in ("forget", "retain"):
        images = fields[kind].images if kind in fields else None
        if images is None or images.folder is None or not images.folder.is_dir():
            continue
        for name, place in places.items():
            if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(images.folder)):
                what = f"lies in {kind}.images.folder, so that what is drawn there would be read as pictures to {kind}."
                yield Problem(name, str(fields[name]), what, "Choose a folder outside of it.")


def _placeholders(place: str, placeholders: Placeholders) -> Iterator[Problem]:
    for key, values in placeholders.items():
        if not values:
            yield Problem(f"{place}.placeholders.{key}", values, "is empty.", "List at least one value.")


def _templates(
    name: str, place: str, data: ForgetSet | RetainSet, templates: list[str], placeholders: Placeholders
) -> Iterator[Problem]:
    for template in templates:
        field = f"{place}.templates"
        names, problems = _names(field, place, template, placeholders)
        yield from problems
        if problems:
            continue
        if "concept" not in names and name == "forget":
            yield Problem(field, template, "does not name the concept.", "Put {concept} into it.")
        found_later = isinstance(data, RetainSet) and data.neighbours
        if "concept" in names and not data.concepts and not found_later:
            yield Problem(f"{name}.concepts", [], "nothing fills {concept}.", f"List concepts under {name}.concepts.")


def _names(field: str, place: str, template: str, placeholders: Placeholders) -> tuple[list[str], list[Problem]]:
    """The {names} in a template, and what is wrong with them."""
    try:
        names = names_in(template)
    except ValueError as error:
        return [], [Problem(field, template, f"is not a template: {error}.", "Write {concept}, or another {name}.")]
    unknown = [name for name in names if name != "concept" and name not in placeholders]
    remedy = f"List them under {place}.placeholders"
    return names, [Problem(field, template, f"{{{name}}} has no values.", f"{remedy}.{name}.") for name in unknown]


def _images(name: str, data: ForgetSet | RetainSet, images: Images) -> Iterator[Problem]:
    field = f"{name}.images"
    if (images.folder is None) == (images.dataset is None):
        given = {"folder": images.folder, "dataset": images.dataset}
        yield Problem(field, given, "needs exactly one of folder and dataset.", "Set one of them.")
    is_tar = images.folder is not None and images.folder.suffix.lower() == ".tar" and images.folder.is_file()
    if images.folder and not (images.folder.is_dir() or is_tar):
        yield Problem(f"{field}.folder", str(images.folder), "there is no such folder.", "Check the path.")
    if images.streaming and images.dataset is None:
        yield Problem(f"{field}.streaming", True, "is of a dataset, and there is a folder.", "Leave it out.")
    if images.limit is not None and not images.streaming:
        yield Problem(f"{field}.limit", images.limit, "is of a streamed dataset.", "Set streaming: true, or omit it.")
    if images.caption is not None:
        yield from _names(f"{field}.caption", name, images.caption, data.placeholders)[1]
    concepts = [concept.name if isinstance(concept, Concept) else concept for concept in data.concepts]
    if images.concept is not None and concepts and images.concept not in concepts:
        what = f"is not among {name}.concepts."
        yield Problem(f"{field}.concept", images.concept, what, nearest(images.concept, concepts))
    if not _is_colour(images.background):
        close = difflib.get_close_matches(images.background, ImageColor.colormap, n=1)
        remedy = f"Did you mean {close[0]!r}?" if close else "Write a name such as white, or '#rrggbb'."
        yield Problem(f"{field}.background", images.background, "is no colour.", remedy)


def _is_colour(name: str) -> bool:
    try:
        return len(ImageColor.getrgb(name)) == 3
    except ValueError:
        return False
