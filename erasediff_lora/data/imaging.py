"""Conversions between pictures and tensors, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What is read, whatever the name of the file: others, such as PostScript, run programs."""
MOST_PIXELS = 80_000_000
LONGEST_STRIP = 8


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


def to_unit_tensor(image: Image.Image, size: int | tuple[int, int]) -> Tensor:
    """Resize until it covers the size, crop the centre and scale to [-1, 1].

    Args:
        image: A picture.
        size: Side of a square, or width and height, in pixels.

    Returns:
        (3, height, width) float32.
    """
    image = image.convert("RGB")
    wanted = (size, size) if isinstance(size, int) else size
    if image.size != wanted:
        longest = LONGEST_STRIP * min(image.size)  # scaled whole, a long strip would become as long as it is narrow
        image = _centre(image, *(min(side, longest) for side in image.size))
        scale = max(covered / side for covered, side in zip(wanted, image.size, strict=True))
        width, height = (max(covered, round(side * scale)) for covered, side in zip(wanted, image.size, strict=True))
        image = _centre(image.resize((width, height), Image.Resampling.LANCZOS), *wanted)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return (pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous()


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


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
