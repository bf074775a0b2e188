"""Gradients through float16 networks, whose small values would vanish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

LOSS_SCALE = 1024.0


class Backward(Protocol):
    """A backward pass from a scaled loss; `again`: whether there may be another one through the same graph."""

    def __call__(self, scaled: Tensor, *, again: bool) -> list[Tensor]:
        """The gradients."""
        ...


def loss_scale(dtype: torch.dtype) -> float:
    """What to multiply a loss by before the backward pass of a network of that dtype."""
    return LOSS_SCALE if dtype == torch.float16 else 1.0


def unscaled_gradients(loss: Tensor, inputs: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Gradients by way of a scaled loss (unscaled in float32); zeros for inputs that the loss does not depend on."""

    def backward(scaled: Tensor, *, again: bool) -> list[Tensor]:
        found = torch.autograd.grad(scaled, list(inputs), allow_unused=True, retain_graph=again)
        return [torch.zeros_like(one) if grad is None else grad for grad, one in zip(found, inputs, strict=True)]

    return unscaled(loss, backward, scale)


def unscaled(loss: Tensor, backward: Backward, scale: float) -> list[Tensor]:
    """What a backward pass finds, by way of a scaled loss.

    Where a scaled gradient overflows, the scale is lowered for this loss alone: each of a step's losses has its own
    range, and no step is lost.
    """
    while True:
        gradients = backward(loss * scale, again=scale > 1)
        if scale <= 1:
            return gradients
        gradients = [gradient.float() / scale for gradient in gradients]
        if bool(torch.cat([gradient.flatten() for gradient in gradients]).isfinite().all()):
            return gradients
        scale /= 4
