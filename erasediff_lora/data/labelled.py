"""Labelled image sets as their authors distribute them: Fashion-MNIST's idx files, CIFAR-10's binary version.

A new one is a function here and a line in LABELLED.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erasediff_lora.errors import Problem, UserError

FASHION_MNIST = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR_SIDE = 32
IDX_IMAGES, IDX_LABELS = 0x803, 0x801


@dataclass(frozen=True)
class Labelled:
    """Pictures of one split.

    Attributes:
        pixels: (N, H, W, C) uint8, C = 1 or 3.
        labels: (N,) int64 indices of `names`.
        names: The classes.
    """

    pixels: np.ndarray
    labels: np.ndarray
    names: list[str]


def find(folder: Path) -> str | None:
    """The set that lies in the folder, by its files; None if it is none of LABELLED."""
    return next((name for name, (file, _) in LABELLED.items() if (folder / file).is_file()), None)


def read(folder: Path, split: str = "train", field: str = "images.folder") -> Labelled:
    """Read the set in a folder.

    Args:
        folder: With the files as they are distributed.
        split: 'train' or 'test'.
        field: What the user calls the folder, for the message.

    Raises:
        UserError: If there is no such set or split, or a file is damaged.
    """
    if split not in ("train", "test"):
        raise UserError(Problem(field, split, "is no split of a labelled set.", "Choose train or test."))
    name = find(folder)
    if name is None:
        files = "; ".join(f"{name}: {file}" for name, (file, _) in LABELLED.items())
        raise UserError(Problem(field, str(folder), "holds no labelled set.", f"Each is known by a file: {files}."))
    try:
        return LABELLED[name][1](folder, split)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            Problem(field, str(folder), f"is not readable as {name}: {error}", "Download it again.")
        ) from error


def _fashion_mnist(folder: Path, split: str) -> Labelled:
    prefix = "train" if split == "train" else "t10k"
    pixels = _idx(folder / f"{prefix}-images-idx3-ubyte.gz", IDX_IMAGES)
    labels = _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", IDX_LABELS)
    return _checked(Labelled(pixels[..., None], labels.astype(np.int64), FASHION_MNIST))


def _idx(file: Path, magic: int) -> np.ndarray:
    """An idx file: big-endian magic number, the sizes of its dimensions, the bytes."""
    with gzip.open(file) as stream:
        data = stream.read()
    dimensions = magic & 0xFF
    header = np.frombuffer(data[: 4 + 4 * dimensions], ">u4")
    if len(header) != 1 + dimensions or header[0] != magic:
        raise ValueError(f"{file.name} has no idx header")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape([int(size) for size in header[1:]])


def _cifar10(folder: Path, split: str) -> Labelled:
    """Rows of a label and 3 x 32 x 32 colour planes."""
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] if split == "train" else ["test_batch.bin"]
    rows = np.concatenate([np.fromfile(folder / name, np.uint8) for name in names])
    rows = rows.reshape(-1, 1 + 3 * CIFAR_SIDE**2)
    pixels = rows[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)
    return _checked(Labelled(pixels, rows[:, 0].astype(np.int64), CIFAR10))


def _checked(data: Labelled) -> Labelled:
    if len(data.pixels) != len(data.labels):
        raise ValueError(f"{len(data.pixels)} pictures and {len(data.labels)} labels")
    if len(data.labels) and data.labels.max() >= len(data.names):
        raise ValueError(f"label {data.labels.max()} of {len(data.names)} classes")
    return data


LABELLED: dict[str, tuple[str, Callable[[Path, str], Labelled]]] = {
    "fashion_mnist": ("train-images-idx3-ubyte.gz", _fashion_mnist),
    "cifar10": ("data_batch_1.bin", _cifar10),
}
"""Name -> the file that it is known by, and its reader."""
