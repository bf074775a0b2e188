"""Tensors of many rows on the disk, in shards: written one by one and kept, read as far as they are asked for.

A set that is stopped while it is made goes on with the shard that is missing, and one of any size trains from the disk:
what is asked for is copied out of a mapped file, and the rest takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.storage import checksummed
from erasediff_lora.storage.checksummed import Damaged

ROWS = "rows"
"""The tensor of a shard that has one."""


@dataclass(frozen=True)
class Shards:
    """Rows of a tensor, spread over files; indexed as the tensor would be.

    Attributes:
        files: The shards; the rows of one have one shape.
        shard: (N,) in which of them each row is.
        place: (N,) where in it.
    """

    files: Sequence[Path]
    shard: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> Tensor:
        """Those rows; of several shapes each in the upper left corner of what holds them all.

        Raises:
            UserError: If a shard is not there any more.
        """
        return stacked([row[ROWS][0] for row in self.read(rows)])

    def read(self, rows: Tensor | Sequence[int] | slice) -> list[dict[str, Tensor]]:
        """All tensors of each of those rows, (1, …).

        Raises:
            UserError: If a shard is not there any more.
        """
        shards, places = self.shard[rows].flatten(), self.place[rows].flatten()
        found: list[dict[str, Tensor]] = [{} for _ in shards]
        for number in shards.unique().tolist():
            wanted = (shards == number).nonzero().flatten().tolist()
            with _opened(self.files[number]) as stored:
                for name in stored.keys():  # noqa: SIM118
                    whole = stored.get_slice(name)
                    for at in wanted:
                        row = int(places[at])
                        found[at][name] = whole[row : row + 1].clone()
        return found

    @property
    def size(self) -> int:
        """Bytes of the files that have any of the rows."""
        return sum(self.files[number].stat().st_size for number in self.shard.unique().tolist())

    def shapes(self, name: str = ROWS) -> Tensor:
        """The last two extents of each row of a tensor, (N, 2): height and width."""
        found = torch.empty(len(self.files), 2, dtype=torch.long)
        for number, file in enumerate(self.files):
            with _opened(file) as stored:
                found[number] = torch.tensor(stored.get_slice(name).get_shape()[-2:])
        return found[self.shard]

    def select(self, rows: Tensor) -> Shards:
        """Some of the rows, which stay on the disk."""
        return Shards(self.files, self.shard[rows], self.place[rows])


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except OSError as error:
        what = f"has been removed while it is in use: {error}."
        raise UserError(Problem("cache", str(file.parent), what, "Run the same command with --resume.")) from None


Rows = Tensor | Shards
"""Rows in memory, or on the disk."""


@dataclass(frozen=True)
class StoredConditions:
    """What a network is told of many prompts, on the disk; indexed as the condition would be.

    Attributes:
        shards: With the parts of a condition.
        length: Tokens of the longest.
    """

    shards: Shards
    length: int

    @classmethod
    def of(cls, shards: Shards) -> StoredConditions:
        """All that the shards have."""
        return cls(shards, int(shards.shapes("tokens")[:, 0].max()))

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, rows: Tensor | Sequence[int] | slice) -> Condition:
        """Of those prompts, filled up to the longest of all."""
        return Condition.cat([Condition(**parts) for parts in self.shards.read(rows)]).padded(self.length)


Conditions = Condition | StoredConditions
"""In memory, or on the disk."""


def select(rows: Rows, chosen: Tensor) -> Rows:
    """Some of them, where they are."""
    return rows.select(chosen) if isinstance(rows, Shards) else rows[chosen]


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """Rows in one tensor, each in the upper left corner: N of (…, h, w) make (N, …, H, W)."""
    height, width = (max(row.shape[axis] for row in rows) for axis in (-2, -1))
    whole = rows[0].new_zeros(len(rows), *rows[0].shape[:-2], height, width)
    for place, row in zip(whole, rows, strict=True):
        place[..., : row.shape[-2], : row.shape[-1]] = row
    return whole


@dataclass(frozen=True)
class Layout:
    """Which rows lie in which shard.

    Attributes:
        name: Files begin with it.
        folder: Where they lie.
        rows: Of each shard.
    """

    name: str
    folder: Path
    rows: Sequence[Sequence[int]]

    @property
    def files(self) -> list[Path]:
        """One a shard."""
        return [self.folder / f"{self.name}-{number:05d}.safetensors" for number in range(len(self.rows))]

    def make(self, number: int, compute: Callable[[], Mapping[str, Tensor]]) -> None:
        """Write a shard, unless it is there and whole.

        Raises:
            UserError: If the cache cannot be written.
        """
        file = self.files[number]
        if not self.is_whole(number):
            checksummed.write(compute(), file)

    def is_whole(self, number: int) -> bool:
        """Whether the shard is there, as it was written."""
        try:
            tensors, _ = checksummed.read(self.files[number])
        except (FileNotFoundError, Damaged):
            return False
        return bool(tensors) and all(len(tensor) == len(self.rows[number]) for tensor in tensors.values())

    def open(self) -> Shards:
        """All rows, in their order."""
        shard = torch.empty(sum(map(len, self.rows)), dtype=torch.long)
        place = torch.empty_like(shard)
        for number, rows in enumerate(self.rows):
            shard[list(rows)] = number
            place[list(rows)] = torch.arange(len(rows))
        return Shards(self.files, shard, place)
