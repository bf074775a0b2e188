"""An update that is put together in another way than B A, as it lies in a file and in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from erasediff_lora.adapter.kinds.base import Kind, Table
from erasediff_lora.storage.tensors import StoredTensor

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

T = TypeVar("T", bound=Table)
LARGEST_WEIGHT, LONGEST_SIDE = 2**26, 2**18
"""Values of a weight, and its rows and columns: more than the largest known layers have. Small files can claim any."""


@dataclass(frozen=True)
class Composite(Generic[T]):
    """The update of one tensor: ΔW = scale · what its kind makes of its parts.

    Attributes:
        kind: How it is put together.
        parts: Tensors by their names in the kind; in memory they are prepared.
        shape: Of the changed tensor; of flat kinds (out, in · kh · kw).
        rank: What alpha was divided by; None where there is no such thing.
        scale: Factor of all of it.
        magnitude: DoRA's magnitudes; None without.
        by_input: Whether the magnitudes are those of the inputs: see `weights.Layer`.
    """

    kind: Kind
    parts: Mapping[str, T]
    shape: tuple[int, ...]
    rank: int | None
    scale: float
    magnitude: T | None = None
    by_input: bool = False

    @property
    def title(self) -> str:
        return self.kind.title


@dataclass(frozen=True)
class CompositeLayer(Composite["Tensor"]):
    """In memory, in float32."""

    def rows(self, first: int, last: int) -> Tensor:
        """Rows of ΔW, (last − first, columns)."""
        made: Tensor = self.kind.rows(self.parts, first, last)
        return made * self.scale

    def add_to(self, block: Tensor, first: int, factor: float) -> None:
        """Add `factor` · ΔW's rows from `first` on to a matrix of as many rows and columns, in place."""
        block.add_(self.rows(first, first + len(block)).to(block.dtype), alpha=factor)

    def delta(self) -> Tensor:
        """ΔW, of `shape`."""
        return self.rows(0, self.shape[0]).reshape(self.shape)


@dataclass(frozen=True)
class StoredComposite(Composite[StoredTensor]):
    """In a file."""

    @property
    def path(self) -> Path:
        return next(iter(self.parts.values())).path

    @property
    def dtype_name(self) -> str:
        return next(iter(self.parts.values())).dtype_name

    def load(self) -> CompositeLayer:
        """The update in memory.

        Raises:
            ValueError: If a part, which is named, holds NaN or Inf.
        """
        parts = {name: tensor.tensor().float() for name, tensor in self.parts.items()}
        for name, tensor in parts.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(name)
        magnitude = None if self.magnitude is None else self.magnitude.tensor().float().flatten()
        return CompositeLayer(
            self.kind, self.kind.prepared(parts), self.shape, self.rank, self.scale, magnitude, self.by_input
        )

    def squared_norm(self) -> float:
        """‖ΔW‖² (Frobenius) in float64, some rows at a time.

        Raises:
            ValueError: If a part, which is named, or their product holds NaN or Inf.
        """
        arrays = {}
        for name, tensor in self.parts.items():
            arrays[name] = tensor.array().astype(np.float64)
            if not bool(np.isfinite(arrays[name]).all()):
                raise ValueError(name)
        with np.errstate(over="ignore", invalid="ignore"):
            norm = self.scale**2 * self.kind.squared_norm(self.kind.prepared(arrays), self.shape)
        if not math.isfinite(norm):
            raise ValueError("the product of the parts")
        return norm


def composite(
    kind: Kind,
    parts: Mapping[str, StoredTensor],
    alpha: float | None,
    rank: int | None = None,
    magnitude: StoredTensor | None = None,
) -> StoredComposite:
    """Put an update together.

    Args:
        kind: How.
        parts: Its tensors.
        alpha: Numerator of the scale; None: the rank.
        rank: Denominator, if the file's configuration has one; otherwise the kind's own, without which the scale is 1.
        magnitude: DoRA's.

    Raises:
        ValueError: If the parts are too few, do not fit, or make up a weight larger than there is any.
    """
    shape = kind.shape(parts)
    stored = sum(part.count for part in parts.values())
    if math.prod(shape) > max(LARGEST_WEIGHT, stored) or max(shape) > max(LONGEST_SIDE, stored):
        raise ValueError(f"its weight would be {list(shape)}")
    rank = kind.rank(parts) if rank is None else rank
    scale = 1.0 if rank is None or alpha is None else alpha / rank
    by_input = magnitude is not None and is_by_input(magnitude)
    return StoredComposite(kind, parts, shape, kind.rank(parts), scale, magnitude, by_input)


def is_by_input(magnitude: Table) -> bool:
    """Whether DoRA's magnitudes lie along the inputs: (1, in) or (1, in, 1, 1), and not (out, 1), (out, 1, 1, 1)."""
    return magnitude.ndim > 1 and magnitude.shape[0] == 1
