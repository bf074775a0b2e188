"""Labelled image sets as their authors distribute them. A new layout is a file here and a line in the registry."""

from __future__ import annotations

import zlib
from pathlib import Path

from erasediff_lora.data.layouts.base import Labelled, Layout
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.registry import LAYOUTS


def find(folder: Path) -> str | None:
    """The name of the layout of the folder, by its files; None if it has none of them."""
    return next((name for name in LAYOUTS if (folder / LAYOUTS[name].marker).is_file()), None)


def read(folder: Path, split: str = "train", field: str = "images.folder") -> Labelled:
    """Read the set in a folder.

    Args:
        folder: With the files as they are distributed.
        split: 'train' or 'test'.
        field: What the user calls the folder, for the message.

    Raises:
        UserError: If there is no such set or split, or a file is damaged.
    """
    if split not in ("train", "test"):
        raise UserError(Problem(field, split, "is no split of a labelled set.", "Choose train or test."))
    name = find(folder)
    if name is None:
        files = "; ".join(f"{name}: {LAYOUTS[name].marker}" for name in LAYOUTS)
        raise UserError(Problem(field, str(folder), "holds no labelled set.", f"Each is known by a file: {files}."))
    layout: Layout = LAYOUTS[name]
    try:
        return layout.read(folder, split)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            Problem(field, str(folder), f"is not readable as {name}: {error}.", "Download it again.")
        ) from error


__all__ = ["Labelled", "Layout", "find", "read"]
