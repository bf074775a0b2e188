"""Copying a file in blocks, some of them changed on the way, by a few threads at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

MEGABYTE = 2**20
BLOCK = MEGABYTE  # with its values in float32 it fits a core's cache
MAX_WORKERS = 4


@dataclass(frozen=True)
class Block:
    """A stretch of a file; with a key, whole rows of that tensor, the first of which is `first_row`.

    It is written where it was read, or at `target`.
    """

    start: int
    length: int
    key: str | None = None
    first_row: int = 0
    target: int | None = None


class Alteration(Protocol):
    """Changes a block that has a key."""

    def __call__(self, block: Block, data: memoryview, scratch: Tensor) -> None:
        """Change the block's bytes in place; `scratch` is float32, as long as the longest block has 16-bit values."""
        ...


def copy(
    source: Path, target: Path, blocks: Sequence[Block], alter: Alteration, progress: Callable[[int], object]
) -> None:
    """Write a file anew, block by block; each thread holds one block in memory.

    Args:
        source: What is read.
        target: Where to; not the source.
        blocks: What of the file is copied, in any order.
        alter: Changes the blocks with a key.
        progress: Called with the number of bytes just written, from any thread.
    """
    size = max(block.length for block in blocks)

    def work(mine: Sequence[Block], stopped: threading.Event) -> None:
        # Buffers are used again and again: fresh memory would cost more than the arithmetic.
        buffer, scratch = memoryview(bytearray(size)), torch.empty(size // 2)
        with source.open("rb", buffering=0) as reader, target.open("r+b", buffering=0) as writer:
            for block in mine:
                if stopped.is_set():
                    return
                part = buffer[: block.length]
                _fill(reader, block.start, part)
                if block.key is not None:
                    alter(block, part, scratch)
                _write(writer, block.start if block.target is None else block.target, part)
                progress(block.length)

    target.touch()
    _share_out(blocks, work)


def _share_out(blocks: Sequence[Block], work: Callable[[Sequence[Block], threading.Event], None]) -> None:
    """Give the blocks to a few threads by turns. When one fails, the others stop at their next block."""
    stopped = threading.Event()

    def guarded(mine: Sequence[Block]) -> None:
        try:
            work(mine, stopped)
        except BaseException:
            stopped.set()
            raise

    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(guarded, blocks[turn::workers]) for turn in range(workers)]:
                done.result()
        finally:
            stopped.set()


def stretch(start: int, end: int) -> Iterator[Block]:
    """Blocks without a key, from one offset to another."""
    for position in range(start, end, BLOCK):
        yield Block(position, min(BLOCK, end - position))


def _fill(reader: IO[bytes], start: int, part: memoryview) -> None:
    """Read exactly that much: a raw read may give less."""
    reader.seek(start)
    while part:
        got = reader.readinto(part)  # type: ignore[attr-defined]
        if not got:
            raise OSError(f"{reader.name} became shorter while it was read")
        part = part[got:]


def _write(writer: IO[bytes], start: int, part: memoryview) -> None:
    """Write all of it, a megabyte at a time: Linux is several times slower to take in more at once."""
    writer.seek(start)
    while part:
        part = part[writer.write(part[:MEGABYTE]) :]
