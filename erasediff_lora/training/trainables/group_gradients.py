"""The gradients of groups of samples in one backward pass, for modules that apply a weight to every sample alike.

The gradient of a linear layer's weight is a sum of outer products over the samples, of what the layer saw and of what
came back. Summed group by group they are what a backward pass for each group would find (cf. Goodfellow: Efficient
Per-Example Gradient Computations, 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import grad as convolution_gradients

from erasediff_lora.objectives.base import Forward, flatten
from erasediff_lora.objectives.loss_scaling import unscaled

Module = nn.Linear | nn.Conv2d


class GroupGradients:
    """Finds them for a network whose trained parameters are the weights of some linear or convolution modules.

    Args:
        modules: Without biases; each sees the samples along its input's first dimension, in their order.
    """

    def __init__(self, modules: Sequence[Module]) -> None:
        self.modules = list(modules)
        self.groups = torch.empty(0, dtype=torch.long)
        self.count = 0
        self.sums: dict[int, Tensor] = {}
        """Of each module in the backward pass, (G, *weight.shape)."""

    def __call__(self, forward: Forward, groups: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
        """See `objectives.base.GroupGradients`."""
        weights = [module.weight for module in self.modules]
        self.groups, self.count = groups, count
        with self._watched():
            losses = forward()

            def backward(scaled: Tensor, *, again: bool) -> list[Tensor]:
                self.sums = {}
                torch.autograd.grad(scaled, weights, allow_unused=True, retain_graph=again)
                unused = (weight.new_zeros(count, *weight.shape) for weight in weights)
                return [self.sums.get(number, zeros) for number, zeros in enumerate(unused)]

            found = unscaled(losses.sum(), backward, scale)
        return losses.detach(), torch.stack([flatten([one[group] for one in found]) for group in range(count)])

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Every module computes as before, and adds up its gradients by group as they pass."""
        for number, module in enumerate(self.modules):
            module.forward = partial(_apply, self, number, module)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in self.modules:
                del module.forward

    def add(self, number: int, gradients: Tensor) -> None:
        """Add to what is known of a module, which may be used more than once, or recomputed."""
        known = self.sums.get(number)
        self.sums[number] = gradients if known is None else known + gradients


def _apply(watcher: GroupGradients, number: int, module: Module, samples: Tensor) -> Tensor:
    result: Tensor = _Watched.apply(samples, module.weight, module, watcher, number)  # type: ignore[no-untyped-call]
    return result


class _Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, samples: Tensor, weight: Tensor, module: Module, watcher: GroupGradients, number: int) -> Any:
        ctx.save_for_backward(samples, weight)
        ctx.module, ctx.watcher, ctx.number = module, watcher, number
        return type(module).forward(module, samples)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, arriving: Tensor) -> Any:
        samples, weight = ctx.saved_tensors
        module, watcher = ctx.module, ctx.watcher
        of_group = _linear if isinstance(module, nn.Linear) else _convolution
        gradients = of_group(module, samples, arriving, watcher.groups.to(samples.device), watcher.count)
        watcher.add(ctx.number, gradients)
        leaving = None
        if ctx.needs_input_grad[0]:
            if isinstance(module, nn.Linear):
                leaving = arriving @ weight
            else:
                how = module.stride, module.padding, module.dilation, module.groups
                leaving = convolution_gradients.conv2d_input(samples.shape, weight, arriving, *how)
        return leaving, gradients.sum(dim=0), None, None, None


def _linear(module: nn.Linear, samples: Tensor, arriving: Tensor, groups: Tensor, count: int) -> Tensor:
    """(G, out, in): outer products summed over the places of a sample, and over the samples of a group."""
    each = torch.bmm(
        arriving.reshape(len(groups), -1, arriving.shape[-1]).mT, samples.reshape(len(groups), -1, samples.shape[-1])
    )
    return each.new_zeros(count, *each.shape[1:]).index_add(0, groups, each)


def _convolution(module: nn.Conv2d, samples: Tensor, arriving: Tensor, groups: Tensor, count: int) -> Tensor:
    """(G, out, in, h, w), by a convolution for each group: a sample's own would take its neighbourhoods in memory."""
    how = module.stride, module.padding, module.dilation, module.groups
    parts = []
    for group in range(count):
        rows = (groups == group).nonzero().flatten()
        parts.append(convolution_gradients.conv2d_weight(samples[rows], module.weight.shape, arriving[rows], *how))
    return torch.stack(parts)
