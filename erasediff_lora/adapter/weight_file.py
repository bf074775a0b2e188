"""A safetensors file of a base: its weights by the adapter's names, read singly and rewritten in a stream."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from erasediff_lora import families
from erasediff_lora.adapter import block_copy, fp8, precision
from erasediff_lora.adapter.block_copy import BLOCK, Block
from erasediff_lora.adapter.weights import BIAS
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import Slot
from erasediff_lora.storage.tensors import all_finite, open_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16} | fp8.DTYPES
EMA = "model_ema."
"""Before the names of the running averages of an LDM checkpoint, which have no dots."""
PAGE = 4096
_NETWORK = "model.diffusion_model."
_BARE = ("", "diffusion_model.")
"""What stands instead of `_NETWORK` in files of the network alone."""


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
        stored = open_tensors(path, "model")
        self.tensors, self.metadata = stored.tensors, stored.metadata
        self.rounding = fp8.Rounding()

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Adapter name, such as 'unet.conv_in', -> where that weight lies."""
        found = self._slots()
        return {name: slot for name, slot in found.items() if slot.divides(self.tensors[slot.key].shape)}

    def _slots(self) -> dict[str, Slot]:
        if self.component is None:
            return families.slots(self.tensors) | self._bare_slots()
        weights = [key for key in self.tensors if key.endswith(".weight")]
        return {
            f"{self.component}.{key.removesuffix('.weight').removeprefix('text_model.')}": Slot(key) for key in weights
        }

    def _bare_slots(self) -> dict[str, Slot]:
        """Those of a network that stands alone in the file, without what a whole model has before its names."""
        if any(key.startswith(_NETWORK) for key in self.tensors):
            return {}
        for prefix in _BARE:
            named = {_NETWORK + key.removeprefix(prefix): key for key in self.tensors if key.startswith(prefix)}
            if found := families.slots(named):
                return {name: replace(slot, key=named[slot.key]) for name, slot in found.items()}
        return {}

    def slot(self, name: str) -> Slot | None:
        """Where a weight or a bias lies, by the adapter's name; None if it is not here."""
        if not name.endswith(BIAS):
            return self.slots.get(name)
        slot = self.slots.get(name.removesuffix(BIAS))
        key = None if slot is None else bias_key(slot.key)
        if slot is None or key not in self.tensors or not slot.divides(self.tensors[key].shape):
            return None
        return replace(slot, key=key)

    def averaged(self, slot: Slot) -> Slot | None:
        """Where the running average (EMA) of what lies in a slot is kept; None if it is not.

        Raises:
            UserError: If it has another shape.
        """
        key = EMA + slot.key.removeprefix("model.").replace(".", "")
        if not slot.key.startswith("model.") or key not in self.tensors:
            return None
        shape, there = self.tensors[slot.key].shape, self.tensors[key].shape
        if shape != there:
            what = f"has a running average {key} {list(there)} of a weight that is {list(shape)}."
            raise UserError(Problem("model", str(self.path), what, "Leave the averages out with --drop_ema."))
        return replace(slot, key=key)

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """Shape of the weight in a slot."""
        rows, *rest = self.tensors[slot.key].shape
        return (slot.height(rows), *rest)

    def read(self, key: str) -> Tensor:
        """A tensor in its own dtype, not memory-mapped; float32 where it is kept in 8 bits.

        Raises:
            UserError: If the dtype is no plain float.
        """
        dtype = self.dtype(key)
        values = self.tensors[key].tensor()
        return fp8.widened(values, self.scale(key)) if dtype.itemsize == 1 else values

    def dtype(self, key: str) -> torch.dtype:
        """Torch's dtype of a tensor.

        Raises:
            UserError: If it is no plain float.
        """
        name = self.tensors[key].dtype
        if name not in DTYPES or fp8.is_in_tiles(key, self.tensors):
            raise UserError(
                Problem(
                    "model",
                    str(self.path),
                    f"keeps {key} as {name}{' in tiles with a scale each' if name in DTYPES else ''}.",
                    f"Only {', '.join(DTYPES)} can be changed: take the model before it was quantised.",
                )
            )
        return DTYPES[name]

    def scale(self, key: str) -> Tensor | None:
        """What the values of a tensor in 8 bits are multiplied by, for all or for each row; None: they stand."""
        found = fp8.scale_key(key, self.tensors)
        return None if found is None else self.tensors[found].tensor().float().flatten()

    def steps(self, slot: Slot, values: Tensor) -> Tensor:
        """How far apart the values lie that a weight can have in this file, at each of these of it, in float64."""
        scale = self.scale(slot.key)
        if scale is not None and len(scale) > 1:
            scale = self._part(slot, scale)
        return precision.step(values, self.dtype(slot.key), scale)

    def is_same(self, slot: Slot, other: WeightFile, there: Slot, values: tuple[Tensor, Tensor]) -> bool:
        """Whether two weights are the same at the precision that this file and another one keep them in.

        Args:
            slot: Of the first.
            other: The file of the second.
            there: Its slot.
            values: Both, in one shape.
        """
        one, two = values
        dtypes = self.dtype(slot.key), other.dtype(there.key)
        is_scaled = self.scale(slot.key) is not None or other.scale(there.key) is not None
        if dtypes[0] == dtypes[1] and not is_scaled:
            return torch.equal(one, two)
        return precision.same(one, two, (self.steps(slot, one), other.steps(there, two)))

    def ends(self, slot: Slot, count: int) -> list[Tensor]:
        """The first and the last `count` values of a weight; none of a quantised one."""
        stored = self.tensors[slot.key]
        if stored.dtype not in DTYPES or stored.dtype in fp8.DTYPES:
            return []
        rows = stored.shape[0] if stored.shape else 1
        row = (stored.end - stored.start) // max(rows, 1)
        stretches = sorted(slot.stretches(rows), key=lambda stretch: stretch[1])
        (begin, _, _), (last, _, height) = stretches[0], stretches[-1]
        length = min(count * DTYPES[stored.dtype].itemsize, row * slot.height(rows))
        values = []
        with self.path.open("rb") as stream:
            for offset in (begin * row, (last + height) * row - length):
                stream.seek(stored.start + offset)
                values.append(torch.frombuffer(bytearray(stream.read(length)), dtype=DTYPES[stored.dtype]))
        return values

    def weight(self, slot: Slot) -> Tensor:
        """The weight in a slot, in its own dtype; float32 where it is kept in 8 bits."""
        return self._part(slot, self.read(slot.key))

    def _part(self, slot: Slot, whole: Tensor) -> Tensor:
        """The rows of a tensor that lie in a slot, in the weight's order."""
        stretches = sorted(slot.stretches(len(whole)), key=lambda stretch: stretch[1])
        parts = [whole[begin : begin + height] for begin, _, height in stretches]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rewrite(
        self,
        target: Path,
        change: Mapping[str, Change],
        progress: Callable[[int], object],
        drop: Collection[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Write a copy in which some tensors are changed and all others are the same, byte for byte.

        Args:
            target: Where to; not this file.
            change: Tensor name -> what changes a block of its rows.
            progress: Called with the number of bytes just written, from any thread.
            drop: Tensors to leave out.
            metadata: Of the new header; None: the header stays, but for what is dropped.

        Raises:
            UserError: If a changed value is not finite in the tensor's dtype, or the dtype is no plain float.
        """

        def alter(block: Block, data: memoryview, scratch: Tensor) -> None:
            if block.key is not None:
                self._change(block.key, data, block.first_row, change[block.key], scratch)

        is_anew = bool(drop) or metadata is not None
        blocks = list(self._blocks(change, drop, is_anew))
        if is_anew:
            header = self._header_without(drop, self.metadata if metadata is None else metadata)
            target.write_bytes(header)
            blocks = list(_packed(blocks, len(header)))
        block_copy.copy(self.path, target, blocks, alter, progress)

    def _blocks(self, change: Mapping[str, Change], drop: Collection[str], without_header: bool) -> Iterator[Block]:
        """The file from beginning to end, cut so that a block is unchanged or some rows of one changed tensor."""
        position = self._begin if without_header else 0
        for key, stored in self.tensors.items():
            if key not in change and key not in drop:
                continue
            yield from block_copy.stretch(position, stored.start)
            position = stored.end
            if key in drop:
                continue
            row = (stored.end - stored.start) // stored.shape[0]
            stride = max(1, BLOCK // row)
            for first in range(0, stored.shape[0], stride):
                yield Block(stored.start + first * row, min(stride, stored.shape[0] - first) * row, key, first)
        yield from block_copy.stretch(position, self.path.stat().st_size)

    @property
    def _begin(self) -> int:
        """Where the values begin."""
        return min(stored.start for stored in self.tensors.values())

    def _header_without(self, drop: Collection[str], metadata: Mapping[str, str]) -> bytes:
        """The header of the file without some tensors; what follows lies at the same place of a page as before."""
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        position = 0
        for key, stored in self.tensors.items():
            if key not in drop:
                end = position + stored.end - stored.start
                header[key] = {"dtype": stored.dtype, "shape": stored.shape, "data_offsets": [position, end]}
                position = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * ((self._begin - 8 - len(text)) % PAGE)
        return len(text).to_bytes(8, "little") + text

    def _change(self, key: str, data: memoryview, first: int, change: Change, scratch: Tensor) -> None:
        """Change some rows of a tensor where they lie; `scratch` takes them in float32 if they have 16 bits."""
        entry, dtype = self.tensors[key], self.dtype(key)
        stored = torch.frombuffer(data, dtype=dtype).reshape(-1, math.prod(entry.shape[1:]))
        if dtype.itemsize == 1:
            is_finite = self._change_8_bits(key, stored, first, change)
        else:
            block = stored if dtype.itemsize >= 4 else scratch[: stored.numel()].view_as(stored).copy_(stored)
            change(block, first)
            if block is not stored:
                stored.copy_(block)
            is_finite = all_finite(stored)
        if not is_finite:
            raise UserError(
                Problem(
                    "model",
                    str(self.path),
                    f"would hold NaN or Inf in {key} as {entry.dtype}.",
                    "Lower the strength, or take the model in float32.",
                )
            )

    def _change_8_bits(self, key: str, stored: Tensor, first: int, change: Change) -> bool:
        """The same of values in 8 bits; returns whether all are finite afterwards."""
        scale = self.scale(key)
        if scale is not None and scale.numel() > 1:
            scale = scale[first : first + len(stored)]
        before = fp8.widened(stored, scale)
        block = before.clone()
        change(block, first)
        stored.copy_(fp8.narrowed(block, scale, stored.dtype))
        after = fp8.widened(stored, scale)
        self.rounding.count(before, block, after)
        return bool(after.isfinite().all())


def bias_key(key: str) -> str:
    """The name of the bias that belongs to a weight's tensor."""
    return key.removesuffix("weight") + "bias"


def _packed(blocks: list[Block], start: int) -> Iterator[Block]:
    """The same blocks, written one behind the other from an offset on."""
    for block in blocks:
        yield replace(block, target=start)
        start += block.length
