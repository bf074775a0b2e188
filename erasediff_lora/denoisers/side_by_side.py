"""Independent batches side by side: a network for which one thread is best leaves the other cores of a CPU idle."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from erasediff_lora.denoisers.base import Denoiser
from erasediff_lora.denoisers.pipeline import PipelineDenoiser
from erasediff_lora.machine.launcher import told

T = TypeVar("T")
R = TypeVar("R")
MOST = 4
"""Threads: each holds the activations of a batch."""


def drawing_threads(denoiser: Denoiser) -> int:
    """How many batches of pictures go at a time: as often as torch's threads go into the cores of this process."""
    if denoiser.device.type != "cpu" or not isinstance(denoiser, PipelineDenoiser):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // torch.get_num_threads() // told("WORLD_SIZE", 1), MOST))


def in_order(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """`map`, with a few of the items ahead of the one whose result is waited for.

    Args:
        work: Gives the same in any thread.
        items: What to work on.
        threads: How many of them at a time, at most; with one, or one item, there is no thread beside the caller's.
    """
    if min(threads, len(items)) <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the first that fails ends the others
            for future in waiting:
                future.cancel()
