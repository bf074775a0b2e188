"""Fashion-MNIST's gzipped idx files; MNIST and its other successors have the same ones."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from erasediff_lora.data.layouts.base import Labelled

NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
IDX_IMAGES, IDX_LABELS = 0x803, 0x801
LARGEST = 2**30
"""Bytes of a file once it is unpacked: twenty times the set's own. A few kilobytes can unpack to as many gigabytes."""


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
    dimensions = magic & 0xFF
    with gzip.open(file) as stream:
        header = np.frombuffer(stream.read(4 + 4 * dimensions), ">u4")
        if len(header) != 1 + dimensions or header[0] != magic:
            raise ValueError(f"{file.name} has no idx header")
        sizes = [int(size) for size in header[1:]]
        if math.prod(sizes) > LARGEST:
            raise ValueError(f"{file.name} has {' x '.join(map(str, sizes))} bytes, and {LARGEST} are the most")
        data = stream.read(math.prod(sizes) + 1)  # one more than there should be
    return np.frombuffer(data, np.uint8).reshape(sizes)
