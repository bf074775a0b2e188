"""Rounding of floating-point numbers: how far apart two copies of a weight may be and still be the same weight."""

from __future__ import annotations

import torch
from torch import Tensor


def step(values: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> Tensor:
    """The distance from each value to the next greater one of a dtype (a unit in the last place), in float64.

    Args:
        values: Any.
        dtype: What they are kept in.
        scale: What the kept values are multiplied by, if they are: one number, or one for each row.
    """
    info = torch.finfo(dtype)
    factor = torch.ones(1) if scale is None else scale
    factor = factor.double().reshape(-1, *[1] * (values.ndim - 1))
    _, exponent = torch.frexp(values.double() / factor)
    steps = torch.ldexp(torch.full_like(values, info.eps, dtype=torch.float64), exponent - 1)
    return steps.clamp(min=info.smallest_normal * info.eps) * factor


def same(one: Tensor, other: Tensor, steps: tuple[Tensor, Tensor]) -> bool:
    """Whether rounding, to the steps of either, explains all that two tensors differ in."""
    return bool(((one.double() - other.double()).abs() <= (steps[0] + steps[1]) / 2).all())
