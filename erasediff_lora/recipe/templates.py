"""What stands between the braces of a template, and how it is filled."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping


def names_in(template: str) -> list[str]:
    """The {names} of a template, in their order.

    Raises:
        ValueError: If it is none: an unpaired brace, or more than a name between two. {{ and }} are braces.
    """
    names = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if spec or conversion or not name.isidentifier():
            raise ValueError("between braces stands a name and nothing else; write {{ and }} for the braces themselves")
        names.append(name)
    return list(dict.fromkeys(names))


def fill(template: str, concept: str | None, attributes: Mapping[str, str]) -> str:
    """The template with its {names} filled: the one place where that is done."""
    return template.format(**{**attributes, "concept": concept})


def fill_known(text: str, values: Mapping[str, str]) -> str:
    """A caption that somebody wrote, with the {names} of the recipe filled, and all else as it stands."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)
