"""A safetensors file of a base: its weights by the adapter's names, read singly and rewritten in a stream."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from erasediff_lora.adapter import ldm
from erasediff_lora.adapter.ldm import Slot
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.files import open_safetensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MEGABYTE = 2**20
BLOCK = 4 * MEGABYTE


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

        Two blocks are in memory: one is written while the next is read and changed.

        Args:
            target: Where to; not this file.
            change: Tensor name -> what changes a block of its rows.
            progress: Called with the number of bytes about to be written.

        Raises:
            UserError: If a changed value is not finite in the tensor's dtype, or the dtype is no plain float.
        """
        with (
            self.path.open("rb", buffering=0) as source,
            target.open("wb", buffering=0) as sink,
            ThreadPoolExecutor(max_workers=1) as writer,
        ):
            written: Future[None] | None = None
            for part in self._changed_blocks(source, change):
                if written is not None:
                    written.result()  # also frees the buffer that comes next
                written = writer.submit(_write, sink, part)
                progress(len(part))
            if written is not None:
                written.result()

    def _changed_blocks(self, source: IO[bytes], change: Mapping[str, Change]) -> Iterator[memoryview]:
        """The file from beginning to end in blocks, which lie in two buffers by turns."""
        changed = [(key, entry) for key, entry in self.entries.items() if key in change]
        size = max([BLOCK, *((entry.end - entry.start) // entry.shape[0] for _, entry in changed)])
        buffers = itertools.cycle([memoryview(bytearray(size)), memoryview(bytearray(size))])
        scratch = torch.empty(size // 2)
        position = 0
        for key, entry in changed:
            yield from _blocks(source, entry.start - position, buffers)
            row_bytes = (entry.end - entry.start) // entry.shape[0]
            stride = size // row_bytes
            for first in range(0, entry.shape[0], stride):
                part = next(buffers)[: min(stride, entry.shape[0] - first) * row_bytes]
                _fill(source, part)
                self._change(key, part, len(part) // row_bytes, partial(change[key], first=first), scratch)
                yield part
            position = entry.end
        yield from _blocks(source, self.path.stat().st_size - position, buffers)

    def _change(self, key: str, part: memoryview, rows: int, change: Callable[[Tensor], None], scratch: Tensor) -> None:
        """Change some rows of a tensor where they lie; `scratch` takes them in float32 if they have 16 bits."""
        dtype = self._dtype(key)
        stored = torch.frombuffer(part, dtype=dtype).reshape(rows, -1)
        block = stored if dtype.itemsize >= 4 else scratch[: stored.numel()].view_as(stored).copy_(stored)
        change(block)
        if block is not stored:
            stored.copy_(block)
        if not all(math.isfinite(end) for end in torch.aminmax(stored)):
            raise UserError(
                Problem(
                    "model",
                    str(self.path),
                    f"would hold NaN or Inf in {key} as {self.entries[key].dtype}.",
                    "Lower the strength, or take the model in float32.",
                )
            )


def _blocks(source: IO[bytes], count: int, buffers: Iterator[memoryview]) -> Iterator[memoryview]:
    """The next `count` bytes of a stream."""
    while count:
        buffer = next(buffers)
        part = buffer[: min(count, len(buffer))]
        _fill(source, part)
        yield part
        count -= len(part)


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
