"""The pictures of a hub folder: drawn anew from those of a run, and blurred where nudity is the subject."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.publishing.findings import Pair
from erasediff_lora.storage.files import atomic
from erasediff_lora.storage.run_folder import EVALUATION_FILE, GRID_FILE, SET_SHEETS, picture_in

Pictures = Literal["both", "after", "none", "unblurred"]
"""What is shown: without and with the adapter, with it only, nothing; both, as they are, whatever they show."""
IMAGES = "images"
"""The folder that they go to."""
BLOCKS = 8
"""Patches that remain of the side of a blurred picture."""
SHEET_BLOCK = 16
"""Side of a patch in a blurred contact sheet, whose pictures have 64 to 128 pixels."""


def copy_pictures(
    run: Path, folder: Path, pairs: Sequence[Pair], pictures: Pictures, *, blur: bool
) -> list[dict[str, Any]]:
    """One picture a pair: base and erased side by side, or erased alone; plus the grid if the base may be shown.

    Args:
        run: The run.
        folder: The hub folder.
        pairs: What its evaluation names.
        pictures: What is shown.
        blur: Whether they are blurred.

    Returns:
        Kind, prompt, seed and picture of each.

    Raises:
        UserError: If an entry names something else than a picture in the run.
    """
    if pictures == "none":
        return []
    names: list[Literal["base", "erased"]] = ["erased"] if pictures == "after" else ["base", "erased"]
    shown = []
    for number, pair in enumerate(pairs, 1):
        entry = f"{EVALUATION_FILE}: pictures.{number - 1}"
        files = [picture_in(run, getattr(pair, name), f"{entry}.{name}") for name in names]
        found = [file for file in files if file is not None]
        if len(found) < len(files):
            continue
        sheet = _side_by_side([_open(file, entry) for file in found])
        name = f"{IMAGES}/{pair.kind}-{number}.png"
        _save(_blurred(sheet, max(2, sheet.height // BLOCKS)) if blur else sheet, folder / name)
        shown.append({"kind": pair.kind, "prompt": pair.prompt, "seed": pair.seed, "picture": name})
    if len(names) == 2:
        copy_sheet(run, folder, GRID_FILE, blur=blur)
    return shown


def is_ours(name: str) -> bool:
    """Whether `copy_pictures` gives a picture that name."""
    return re.fullmatch(r"(forget|retain)-\d+\.png", name) is not None


def copy_sets(run: Path, folder: Path, *, blur: bool) -> None:
    """The contact sheets of the forget and the retain set."""
    for name in SET_SHEETS.values():
        copy_sheet(run, folder, name, blur=blur)


def copy_sheet(run: Path, folder: Path, name: str, *, blur: bool) -> None:
    """A contact sheet, if the run has it."""
    if (file := picture_in(run, name, "run")) is not None:
        sheet = _open(file, "run")
        _save(_blurred(sheet, SHEET_BLOCK) if blur else sheet, folder / name)


def _open(file: Path, entry: str) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            Problem(entry, file.name, f"is a damaged picture: {error}.", "Make it again: erasediff-lora evaluate RUN.")
        ) from None


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


def _blurred(image: Image.Image, block: int) -> Image.Image:
    """So that it cannot be undone: what is smaller than a block is averaged away."""
    small = image.resize((max(1, image.width // block), max(1, image.height // block)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _save(image: Image.Image, file: Path) -> None:
    with atomic(file) as temporary:
        image.save(temporary, format="PNG")
