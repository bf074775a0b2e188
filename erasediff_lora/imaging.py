"""Conversions between pictures and tensors, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor


def to_unit_tensor(image: Image.Image, size: int) -> Tensor:
    """Resize the shorter side to `size`, crop the centre and scale to [-1, 1].

    Returns:
        (3, size, size) float32.
    """
    image = image.convert("RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return (pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous()


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
            sheet.paste(picture.convert("RGB").resize((cell, cell)), (label_width + column * (cell + gap), top))
        top += height + gap
    return sheet
