"""Pictures as the tensors that networks take."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONGEST_STRIP = 8


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
