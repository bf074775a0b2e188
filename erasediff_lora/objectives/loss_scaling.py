"""Gradients through float16 networks, whose small values would vanish."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LOSS_SCALE = 1024.0


def loss_scale(dtype: torch.dtype) -> float:
    """What to multiply a loss by before the backward pass of a network of that dtype."""
    return LOSS_SCALE if dtype == torch.float16 else 1.0


def unscaled_gradients(loss: Tensor, inputs: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Gradients by way of a scaled loss (unscaled in float32); zeros for inputs that the loss does not depend on.

    Where a scaled gradient overflows, the scale is lowered for this loss alone: each of a step's losses has its own
    range, and no step is lost.
    """
    while True:
        found = torch.autograd.grad(loss * scale, list(inputs), allow_unused=True, retain_graph=scale > 1)
        pairs = zip(found, inputs, strict=True)
        gradients = [torch.zeros_like(one) if gradient is None else gradient for gradient, one in pairs]
        if scale <= 1:
            return gradients
        gradients = [gradient.float() / scale for gradient in gradients]
        if bool(torch.cat([gradient.flatten() for gradient in gradients]).isfinite().all()):
            return gradients
        scale /= 4
