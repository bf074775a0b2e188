"""What a layout of labelled pictures must bring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np


@dataclass(frozen=True)
class Labelled:
    """Pictures of one split.

    Attributes:
        pixels: (N, H, W, C) uint8, C = 1 or 3.
        labels: (N,) int64 indices of `names`.
        names: The classes.

    Raises:
        ValueError: If pictures, labels and names do not fit together.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: list[str]

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise ValueError(f"{len(self.pixels)} pictures and {len(self.labels)} labels")
        if len(self.labels) and self.labels.max() >= len(self.names):
            raise ValueError(f"label {self.labels.max()} of {len(self.names)} classes")


class Layout(Protocol):
    """A labelled set as its authors distribute it. One file each, and a line in the registry."""

    marker: ClassVar[str]
    """The file that a folder of this layout is known by."""

    @staticmethod
    def read(folder: Path, split: str) -> Labelled:
        """Read a split, 'train' or 'test'.

        Raises:
            OSError, EOFError, ValueError, zlib.error: If a file is missing or damaged.
        """
        ...
