"""Where a weight lies in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """Where a weight lies in a file: a tensor, or some of `parts` equal slices of its rows.

    Attributes:
        key: The tensor.
        part: Number of the first slice.
        parts: How many there are.
        swapped: Whether the two halves of the rows lie the other way round.
        span: How many slices it takes.
    """

    key: str
    part: int = 0
    parts: int = 1
    swapped: bool = False
    span: int = 1

    def height(self, rows: int) -> int:
        """Rows of the weight in a tensor of so many."""
        return rows // self.parts * self.span

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can hold the slice: it has rows, and so many that they can be shared out."""
        return 0 not in shape and bool(shape) and shape[0] % (self.parts * (1 + self.swapped)) == 0

    def stretches(self, rows: int) -> Iterator[tuple[int, int, int]]:
        """First row in a tensor of so many rows, first row in the weight, and number, of each unbroken stretch."""
        height = self.height(rows)
        offset = rows // self.parts * self.part
        if not self.swapped:
            yield offset, 0, height
        else:
            yield offset, height // 2, height // 2
            yield offset + height // 2, 0, height // 2
