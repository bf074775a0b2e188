"""What a path means that a recipe or the command line gives: one rule for all of them.

`~` is the home folder; what is not absolute is relative to the folder that the command runs in, in a recipe too.
"""

from __future__ import annotations

import os
from pathlib import Path

from erasediff_lora.errors import Problem, UserError


def expanded(path: Path | str, field: str) -> Path:
    """The path, `~` replaced.

    Args:
        path: As the user gave it.
        field: What the user calls it, for the message.

    Raises:
        UserError: If it can be no path: the home folder of nobody, or it has a NUL character.
    """
    try:
        if not str(path):
            raise ValueError("it is empty")
        if "\0" in str(path):
            raise ValueError("it has a NUL character")
        found = Path(path).expanduser()
        found.is_symlink()  # the system's opinion of its length
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            Problem(field, str(path), f"is no path: {str(error).rstrip('.')}.", "Give another one.")
        ) from None
    return found


def at_home(text: str, field: str) -> str:
    """A name that may be a path or something else, such as a hub id: `~/` at its beginning is replaced.

    Raises:
        UserError: If it can be no path.
    """
    return str(expanded(text, field)) if text.startswith("~") and ("/" in text or os.sep in text) else text


def existing(path: Path | str, field: str) -> Path:
    """The same of something to read, where a link that leads nowhere is told from a name that is not there.

    Raises:
        UserError: If it is such a link, or the way to it is barred.
    """
    found = expanded(path, field)
    try:
        is_dangling = found.is_symlink() and not found.exists()
    except OSError as error:
        raise UserError(Problem(field, str(path), f"cannot be read: {error.strerror}.", "Give another path.")) from None
    if is_dangling:
        raise dangling(found, field)
    return found


def dangling(link: Path, field: str) -> UserError:
    """The complaint about a link that leads nowhere."""
    return UserError(
        Problem(
            field,
            str(link),
            f"is a link to {link.readlink()}, which is not there.",
            "Give the file itself, or download it again: a hub cache that was cleaned leaves such links.",
        )
    )
