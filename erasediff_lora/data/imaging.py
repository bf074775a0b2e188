"""Conversions between pictures and tensors, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from erasediff_lora.denoisers.pixels import to_unit_tensor

__all__ = ["contact_sheet", "to_unit_tensor"]


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
