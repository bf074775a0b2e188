"""A safetensors file of a base: its weights by the adapter's names, read singly and rewritten in a stream."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from erasediff_lora.adapter import ldm
from erasediff_lora.adapter.ldm import Slot
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import open_safetensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MEGABYTE = 2**20
BLOCK = 4 * MEGABYTE
MAX_WORKERS = 4


class Change(Protocol):
    """Changes rows of a tensor in place."""

    def __call__(self, block: Tensor, first: int) -> None:
        """Change `block`, (rows, columns) in float32, or float64 of a float64 tensor; `first` is its first row."""
        ...


@dataclass(frozen=True)
class Entry:
    """A tensor in a safetensors file; `start` and `end` are offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Block:
    """A stretch of a file; with a key, whole rows of that tensor, the first of which is `first_row`."""

    start: int
    length: int
    key: str | None = None
    first_row: int = 0


class WeightFile:
    """One safetensors file of a base, whose tensors are looked up by the adapter's names.

    Raises:
        UserError: If it is damaged or a pickle.
    """

    def __init__(self, path: Path, component: str | None = None) -> None:
        self.path = path
        self.component = component
        open_safetensors(path, "model")  # checks the header against the file's size
        with path.open("rb") as stream:
            self.start = 8 + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(self.start - 8))
        header.pop("__metadata__", None)
        self.entries = {
            key: Entry(e["dtype"], tuple(e["shape"]), *(self.start + offset for offset in e["data_offsets"]))
            for key, e in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        }

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Adapter name, such as 'unet.conv_in', -> where that weight lies."""
        if self.component is None:
            return ldm.slots(self.entries)
        weights = [key for key in self.entries if key.endswith(".weight")]
        return {
            f"{self.component}.{key.removesuffix('.weight').removeprefix('text_model.')}": Slot(key) for key in weights
        }

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """Shape of the weight in a slot."""
        rows, *rest = self.entries[slot.key].shape
        return (rows // slot.parts, *rest)

    def read(self, key: str) -> Tensor:
        """A tensor in its own dtype, not memory-mapped.

        Raises:
            UserError: If the dtype is no plain float.
        """
        entry, dtype = self.entries[key], self._dtype(key)
        data = bytearray(entry.end - entry.start)
        with self.path.open("rb") as stream:
            stream.seek(entry.start)
            stream.readinto(data)
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(entry.shape)

    def _dtype(self, key: str) -> torch.dtype:
        name = self.entries[key].dtype
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
        entry = self.entries[key]
        if entry.dtype not in DTYPES:
            return []
        length = min(count * DTYPES[entry.dtype].itemsize, entry.end - entry.start)
        values = []
        with self.path.open("rb") as stream:
            for offset in (entry.start, entry.end - length):
                stream.seek(offset)
                values.append(torch.frombuffer(bytearray(stream.read(length)), dtype=DTYPES[entry.dtype]))
        return values

    def weight(self, slot: Slot) -> Tensor:
        """The weight in a slot, in its own dtype."""
        return self.read(slot.key).chunk(slot.parts)[slot.part]

    def rewrite(self, target: Path, change: Mapping[str, Change], progress: Callable[[int], object]) -> None:
        """Write a copy in which some tensors are changed and every other byte is the same.

        A few threads take the file's blocks by turns; each holds one block in memory.

        Args:
            target: Where to; not this file.
            change: Tensor name -> what changes a block of its rows.
            progress: Called with the number of bytes just written, from any thread.

        Raises:
            UserError: If a changed value is not finite in the tensor's dtype, or the dtype is no plain float.
        """
        blocks = list(self._blocks(change))
        size = max(block.length for block in blocks)
        stop = threading.Event()

        def work(mine: Sequence[Block]) -> None:
            # Buffers are used again and again: fresh memory would cost more than the arithmetic.
            buffer, scratch = memoryview(bytearray(size)), torch.empty(size // 2)
            try:
                with self.path.open("rb", buffering=0) as source, target.open("r+b", buffering=0) as sink:
                    for block in mine:
                        if stop.is_set():
                            return
                        part = buffer[: block.length]
                        source.seek(block.start)
                        _fill(source, part)
                        if block.key is not None:
                            self._change(block.key, part, partial(change[block.key], first=block.first_row), scratch)
                        sink.seek(block.start)
                        _write(sink, part)
                        progress(block.length)
            except BaseException:
                stop.set()
                raise

        target.touch()
        workers = min(MAX_WORKERS, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for done in [pool.submit(work, blocks[turn::workers]) for turn in range(workers)]:
                    done.result()
            finally:
                stop.set()

    def _blocks(self, change: Mapping[str, Change]) -> Iterator[Block]:
        """The file from beginning to end, cut so that a block is unchanged or some rows of one changed tensor."""
        position = 0
        for key, entry in self.entries.items():
            if key not in change:
                continue
            yield from _stretch(position, entry.start)
            row = (entry.end - entry.start) // entry.shape[0]
            stride = max(1, BLOCK // row)
            for first in range(0, entry.shape[0], stride):
                yield Block(entry.start + first * row, min(stride, entry.shape[0] - first) * row, key, first)
            position = entry.end
        yield from _stretch(position, self.path.stat().st_size)

    def _change(self, key: str, part: memoryview, change: Callable[[Tensor], None], scratch: Tensor) -> None:
        """Change some rows of a tensor where they lie; `scratch` takes them in float32 if they have 16 bits."""
        entry, dtype = self.entries[key], self._dtype(key)
        stored = torch.frombuffer(part, dtype=dtype).reshape(-1, math.prod(entry.shape[1:]))
        block = stored if dtype.itemsize >= 4 else scratch[: stored.numel()].view_as(stored).copy_(stored)
        change(block)
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


def _stretch(start: int, end: int) -> Iterator[Block]:
    for position in range(start, end, BLOCK):
        yield Block(position, min(BLOCK, end - position))


def _fill(source: IO[bytes], part: memoryview) -> None:
    """Read exactly that much: a raw read may give less."""
    while part:
        got = source.readinto(part)  # type: ignore[attr-defined]
        if not got:
            raise OSError(f"{source.name} became shorter while it was read")
        part = part[got:]


def _write(sink: IO[bytes], part: memoryview) -> None:
    """Write all of it, a megabyte at a time: Linux is several times slower to take in more at once."""
    while part:
        part = part[sink.write(part[:MEGABYTE]) :]
