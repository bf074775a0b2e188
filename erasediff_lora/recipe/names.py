"""How names of concepts are compared, and written in the plural and in lists."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

FEW = 12
"""Names that a sentence lists."""


def folded(name: str) -> str:
    """A name as names are compared: whatever its case, with spaces, underscores or hyphens, accents composed or not."""
    return " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFC", name).casefold())).strip()


def plural(name: str) -> str:
    """The regular English plural."""
    if re.search(r"(s|x|z|ch|sh)$", name, re.IGNORECASE):
        return name + "es"
    if re.search(r"[^aeiou\W]y$", name, re.IGNORECASE):
        return name[:-1] + "ies"
    return name + "s"


def spellings(name: str) -> set[str]:
    """The name and its plural, folded."""
    return {folded(name), folded(plural(name))}


def few(names: Sequence[str], most: int = FEW) -> str:
    """The names as a sentence lists them; of very many the first ones."""
    more = len(names) - most
    return ", ".join(names) if more < 2 else f"{', '.join(names[:most])} and {more:,} more"
