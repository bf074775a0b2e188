"""A safetensors file of a base: its weights by the adapter's names, read singly and rewritten in a stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from erasediff_lora import families
from erasediff_lora.adapter import block_copy
from erasediff_lora.adapter.block_copy import BLOCK, Block
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import Slot
from erasediff_lora.storage.tensors import open_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Change(Protocol):
    """Changes rows of a tensor in place."""

    def __call__(self, block: Tensor, first: int) -> None:
        """Change `block`, (rows, columns) in float32, or float64 of a float64 tensor; `first` is its first row."""
        ...


class WeightFile:
    """One safetensors file of a base, whose tensors are looked up by the adapter's names.

    Args:
        path: The file.
        component: What it holds by diffusers' names, such as 'unet'; None: a whole model in the layout of a family.

    Raises:
        UserError: If it is damaged or a pickle.
    """

    def __init__(self, path: Path, component: str | None = None) -> None:
        self.path = path
        self.component = component
        self.tensors = open_tensors(path, "model").tensors

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Adapter name, such as 'unet.conv_in', -> where that weight lies."""
        if self.component is None:
            return families.slots(self.tensors)
        weights = [key for key in self.tensors if key.endswith(".weight")]
        return {
            f"{self.component}.{key.removesuffix('.weight').removeprefix('text_model.')}": Slot(key) for key in weights
        }

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """Shape of the weight in a slot."""
        rows, *rest = self.tensors[slot.key].shape
        return (rows // slot.parts, *rest)

    def read(self, key: str) -> Tensor:
        """A tensor in its own dtype, not memory-mapped.

        Raises:
            UserError: If the dtype is no plain float.
        """
        self._dtype(key)
        return self.tensors[key].tensor()

    def _dtype(self, key: str) -> torch.dtype:
        name = self.tensors[key].dtype
        if name not in DTYPES:
            raise UserError(
                Problem(
                    "model",
                    str(self.path),
                    f"keeps {key} as {name}.",
                    f"Only {', '.join(DTYPES)} can be changed: take the model before it was quantised.",
                )
            )
        return DTYPES[name]

    def ends(self, key: str, count: int) -> list[Tensor]:
        """The first and the last `count` values of a tensor; none of a quantised one."""
        stored = self.tensors[key]
        if stored.dtype not in DTYPES:
            return []
        length = min(count * DTYPES[stored.dtype].itemsize, stored.end - stored.start)
        values = []
        with self.path.open("rb") as stream:
            for offset in (stored.start, stored.end - length):
                stream.seek(offset)
                values.append(torch.frombuffer(bytearray(stream.read(length)), dtype=DTYPES[stored.dtype]))
        return values

    def weight(self, slot: Slot) -> Tensor:
        """The weight in a slot, in its own dtype."""
        return self.read(slot.key).chunk(slot.parts)[slot.part]

    def rewrite(self, target: Path, change: Mapping[str, Change], progress: Callable[[int], object]) -> None:
        """Write a copy in which some tensors are changed and every other byte is the same.

        Args:
            target: Where to; not this file.
            change: Tensor name -> what changes a block of its rows.
            progress: Called with the number of bytes just written, from any thread.

        Raises:
            UserError: If a changed value is not finite in the tensor's dtype, or the dtype is no plain float.
        """

        def alter(block: Block, data: memoryview, scratch: Tensor) -> None:
            if block.key is not None:
                self._change(block.key, data, block.first_row, change[block.key], scratch)

        block_copy.copy(self.path, target, list(self._blocks(change)), alter, progress)

    def _blocks(self, change: Mapping[str, Change]) -> Iterator[Block]:
        """The file from beginning to end, cut so that a block is unchanged or some rows of one changed tensor."""
        position = 0
        for key, stored in self.tensors.items():
            if key not in change:
                continue
            yield from block_copy.stretch(position, stored.start)
            row = (stored.end - stored.start) // stored.shape[0]
            stride = max(1, BLOCK // row)
            for first in range(0, stored.shape[0], stride):
                yield Block(stored.start + first * row, min(stride, stored.shape[0] - first) * row, key, first)
            position = stored.end
        yield from block_copy.stretch(position, self.path.stat().st_size)

    def _change(self, key: str, data: memoryview, first: int, change: Change, scratch: Tensor) -> None:
        """Change some rows of a tensor where they lie; `scratch` takes them in float32 if they have 16 bits."""
        entry, dtype = self.tensors[key], self._dtype(key)
        stored = torch.frombuffer(data, dtype=dtype).reshape(-1, math.prod(entry.shape[1:]))
        block = stored if dtype.itemsize >= 4 else scratch[: stored.numel()].view_as(stored).copy_(stored)
        change(block, first)
        if block is not stored:
            stored.copy_(block)
        if not all(math.isfinite(end) for end in torch.aminmax(stored)):
            raise UserError(
                Problem(
                    "model",
                    str(self.path),
                    f"would hold NaN or Inf in {key} as {entry.dtype}.",
                    "Lower the strength, or take the model in float32.",
                )
            )
