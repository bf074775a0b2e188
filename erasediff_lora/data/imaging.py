"""Conversions between pictures and tensors, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from erasediff_lora.denoisers.pixels import to_unit_tensor

__all__ = ["FORMATS", "MOST_PIXELS", "SUFFIXES", "contact_sheet", "open_picture", "to_unit_tensor"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What is read, whatever the name of the file: others, such as PostScript, run programs."""
MOST_PIXELS = 80_000_000


def open_picture(source: Any) -> Image.Image:
    """A picture in RGB.

    Args:
        source: A file, an open one, or a picture.

    Raises:
        OSError: If it is not readable, in no known format, or has more than MOST_PIXELS.
    """
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS)
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise OSError(f"it has {width} x {height} pixels, more than {MOST_PIXELS}")
        return image.convert("RGB")
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], *, cell: int = 64, label_width: int = 150
) -> Image.Image:
    """Lay labelled rows of pictures on one sheet.

    Args:
        rows: (label, pictures) from top to bottom; an empty picture list makes a heading.
        cell: Side of a picture's cell in pixels.
        label_width: Width of the label column in pixels.
    """
    gap = 4
    columns = max((len(pictures) for _, pictures in rows), default=1)
    heights = [cell if pictures else 22 for _, pictures in rows]
    sheet = Image.new("RGB", (label_width + columns * (cell + gap), sum(heights) + gap * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for (label, pictures), height in zip(rows, heights, strict=True):
        draw.text((6, top + height // 2 - 7), label, fill="black", font_size=12)
        for column, picture in enumerate(pictures):
            shown = ImageOps.pad(picture.convert("RGB"), (cell, cell), color="white")
            sheet.paste(shown, (label_width + column * (cell + gap), top))
        top += height + gap
    return sheet
