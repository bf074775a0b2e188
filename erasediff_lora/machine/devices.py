"""What computes, through torch's own interface: cuda (also AMD's cards), mps (Apple's), xpu (Intel's), or the cpu."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GPUS = ("cuda", "mps", "xpu")
"""Kinds of accelerators that are used; others that torch may have are left alone."""


def accelerator() -> str | None:
    """The kind of accelerator that this machine has, and torch can use; None without one."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found is not None and found.type in GPUS else None


def has_bfloat16(kind: str) -> bool:
    """Whether the device computes in bfloat16 itself: cards before 2020 and older systems of Apple do not."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        one = torch.ones(1, 1, dtype=torch.bfloat16, device=kind)
        return float(one @ one) == 1.0
    except (RuntimeError, TypeError):
        return False


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, in main memory where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def widest(device: torch.device) -> torch.dtype:
    """The widest floats that a device has."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the device's allocator, or without a GPU this process, ever held; on mps what it holds."""
    if device.type == "cpu":
        return _peak_of_process()
    module = _module(device.type)
    held = getattr(module, "max_memory_allocated", None) or module.driver_allocated_memory
    return int(held())


def capacity(kind: str) -> int | None:
    """Bytes that a device has of its own; None of one that shares main memory."""
    asked = getattr(_module(kind), "mem_get_info", None) if kind in GPUS else None
    return None if asked is None else int(asked()[1])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or main memory, had no room for a tensor."""
    import torch

    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "not enough memory" in said


def give_back(device: torch.device) -> None:
    """Let go of memory that is no longer used."""
    if device.type in GPUS:
        _module(device.type).empty_cache()
    elif sys.platform == "linux":
        import ctypes

        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # glibc keeps freed pages otherwise


def _module(kind: str) -> Any:
    import torch

    return getattr(torch, kind)


def _peak_of_process() -> int:
    if sys.platform == "linux":  # getrusage's starts from what the parent held when it started this one
        status = Path("/proc/self/status")
        if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
