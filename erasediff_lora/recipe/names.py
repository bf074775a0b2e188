"""When two names are the same."""

from __future__ import annotations

import unicodedata


def folded(name: str) -> str:
    """A name as names are compared: whatever its case, its spaces, and how its accents are encoded."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())
