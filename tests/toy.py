"""A network small enough for finite differences, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from erasediff_lora.objectives import Batch, Direction, Network, Objective, aim
from erasediff_lora.objectives.condition import Condition


class Toy(nn.Module):
    """A nonlinear network with a frozen base and a trainable low-rank part, like an adapter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64), requires_grad=False)
        self.down = nn.Parameter(torch.randn(2, 6, generator=generator, dtype=torch.float64) * 0.3)
        self.up = nn.Parameter(torch.randn(6, 2, generator=generator, dtype=torch.float64) * 0.3)
        self.calls = 0
        self.adapted = True

    def forward(self, noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        self.calls += 1
        weight = self.base + self.up @ self.down if self.adapted else self.base
        hidden = (noisy.flatten(1) + prompts.tokens.mean(dim=1)) @ weight.T + timesteps[:, None] / 1000
        return torch.tanh(hidden).view_as(noisy)

    def forward_base(self, noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        self.adapted = False
        try:
            return self(noisy, timesteps, prompts)
        finally:
            self.adapted = True


def network(toy: Toy) -> Network:
    return Network(
        [toy.down, toy.up],
        toy,
        toy.forward_base,
        base_weights=[toy.base],
        weight_changes=lambda: [toy.up @ toy.down],
        train_timesteps=50,
    )


def batch(seed: int, count: int = 4) -> Batch:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return Batch(
        noisy=draw(count, 6, 1, 1),
        timesteps=torch.randint(0, 1000, (count,), generator=g),
        prompts=Condition(draw(count, 3, 6)),
        target=draw(count, 6, 1, 1),
        extras={
            "anchors": Condition(draw(count, 3, 6)),
            "empty": Condition(draw(count, 3, 6)),
            "uniform": torch.rand(count, 6, 1, 1, generator=g, dtype=torch.float64),
            "surrogate_noisy": draw(count, 6, 1, 1),
            "surrogate_target": draw(count, 6, 1, 1),
            "scattered": Condition(draw(count, 3, 6)),
        },
    )


def direction(objective: Objective, forget: Sequence[Batch], retain: Sequence[Batch]) -> Direction:
    """As the loop finds it."""
    return objective.direction(*aim(objective, forget, retain))


def finite_difference(function: Any, at: Tensor, step: float = 1e-6) -> Tensor:
    gradient = torch.zeros_like(at)
    for index in range(len(at)):
        nudge = torch.zeros_like(at)
        nudge[index] = step
        gradient[index] = (function(at + nudge) - function(at - nudge)) / (2 * step)
    return gradient
