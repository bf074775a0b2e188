"""CIFAR-10's binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from erasediff_lora.data.layouts.base import Labelled

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIDE = 32


class Cifar10:
    """Rows of a label and 3 x 32 x 32 colour planes."""

    marker = "data_batch_1.bin"

    @staticmethod
    def read(folder: Path, split: str) -> Labelled:
        """As `Layout.read`."""
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] if split == "train" else ["test_batch.bin"]
        rows = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
        rows = rows.reshape(-1, 1 + 3 * SIDE**2)
        pixels = rows[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        return Labelled(pixels, rows[:, 0].astype(np.int64), NAMES)
