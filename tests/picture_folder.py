"""Folders of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pictures(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir(parents=True)
    for index, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder
