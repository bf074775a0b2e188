"""Fashion-MNIST's gzipped idx files; MNIST and its other successors have the same ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from erasediff_lora.data.layouts.base import Labelled

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
IDX_IMAGES, IDX_LABELS = 0x803, 0x801


class FashionMnist:
    """A file of pictures and one of labels for each split."""

    marker = "train-images-idx3-ubyte.gz"

    @staticmethod
    def read(folder: Path, split: str) -> Labelled:
        """As `Layout.read`."""
        prefix = "train" if split == "train" else "t10k"
        pixels = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", IDX_IMAGES)
        labels = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", IDX_LABELS)
        return Labelled(pixels[..., None], labels.astype(np.int64), NAMES)


def _idx(file: Path, magic: int) -> np.ndarray:
    """An idx file: big-endian magic number, the sizes of its dimensions, the bytes."""
    with gzip.open(file) as stream:
        data = stream.read()
    dimensions = magic & 0xFF
    header = np.frombuffer(data[: 4 + 4 * dimensions], ">u4")
    if len(header) != 1 + dimensions or header[0] != magic:
        raise ValueError(f"{file.name} has no idx header")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape([int(size) for size in header[1:]])
