"""Counts the bytes that tensors hold while a program runs that computes nothing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_VALUE_OPS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}
"""What asks a tensor for its value, which a tensor of shapes alone has not."""


class MemoryTracker(TorchDispatchMode):
    """Live and peak bytes of all storages that operations make while it is active.

    Attributes:
        live: Bytes held now.
        peak: The most that was held since the last `reset`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, Any] = {}

    def reset(self) -> None:
        """Count the peak from here on."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _VALUE_OPS:
            return 1.0 if func is torch.ops.aten._local_scalar_dense.default else True
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self._known[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        self._known.pop(key, None)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as processors and GPUs compute it; without values torch would make the (L, L) matrix."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _ones(tensor: Tensor) -> list[Any]:
    """A number of the tensor's kind for each element."""
    return [1.0 if tensor.is_floating_point() else 1] * tensor.numel()


@contextmanager
def on_meta(tracker: MemoryTracker | None = None) -> Iterator[MemoryTracker]:
    """Tensors made inside have shapes and no values; what they would hold is counted, on by a tracker that is given."""
    # Patched, since a mode for functions is off in a backward pass, where checkpointed blocks are computed again.
    attention = mock.patch.object(F, "scaled_dot_product_attention", _fused)
    values = mock.patch.object(Tensor, "tolist", _ones)  # as _VALUE_OPS, of vectors
    with torch.device("meta"), attention, values, tracker or MemoryTracker() as counting:
        yield counting
