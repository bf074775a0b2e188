"""Weights in 8 bits: what they stand for, rounding to them, and what rounding costs.

A tensor may have a scale beside it, one number or one for each row: `X.scale_weight` (ComfyUI's scaled_fp8 files) or
`X.weight_scale` (its newer ones, compressed-tensors). A weight is the stored value times the scale.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from erasediff_lora.storage.tensors import StoredTensor

DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def scale_key(key: str, tensors: Mapping[str, StoredTensor]) -> str | None:
    """The tensor with the scale of another one in 8 bits; None if there is none."""
    if tensors[key].dtype not in DTYPES:
        return None
    names = (key.removesuffix("weight") + "scale_weight", key + "_scale")
    return next((name for name in names if name in tensors and tensors[name].is_float), None)


def is_in_tiles(key: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether a tensor's scales are of a kind that is not known, such as one for each tile of 128 × 128."""
    if key + "_scale_inv" in tensors:
        return True
    found = scale_key(key, tensors)
    return found is not None and tensors[found].count not in (1, tensors[key].shape[0])


def widened(values: Tensor, scale: Tensor | None) -> Tensor:
    """What stored values stand for, in float32."""
    wide = values.float()
    return wide if scale is None else wide * _column(scale, wide.ndim)


def narrowed(weights: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The nearest stored values.

    What lies beyond the greatest one becomes NaN, and where there is a scale the greatest one, as in ComfyUI: it was
    chosen so that the greatest weight is at the end of the range.
    """
    limit = torch.finfo(dtype).max
    if scale is None:
        return torch.where(weights.abs() <= limit, weights, torch.nan).to(dtype)
    return (weights / _column(scale, weights.ndim)).clamp(-limit, limit).to(dtype)


def _column(scale: Tensor, ndim: int) -> Tensor:
    return scale.reshape(-1, *[1] * (ndim - 1))


class Rounding:
    """What rounding to 8 bits makes of an update, summed over blocks by any threads."""

    def __init__(self) -> None:
        self.values = 0
        self._error = self._update = 0.0
        self._lock = threading.Lock()

    def count(self, before: Tensor, exact: Tensor, stored: Tensor) -> None:
        """Count a block: as it was, as it should be, and as it is now."""
        error = float((stored - exact).double().square().sum())
        update = float((exact - before).double().square().sum())
        with self._lock:
            self.values += exact.numel()
            self._error += error
            self._update += update

    def __add__(self, other: Rounding) -> Rounding:
        both = Rounding()
        both.values = self.values + other.values
        both._error, both._update = self._error + other._error, self._update + other._update
        return both

    @property
    def relative(self) -> float:
        """‖stored − exact‖ / ‖exact − before‖."""
        return (self._error / self._update) ** 0.5 if self._update else 0.0
