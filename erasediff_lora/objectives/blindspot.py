"""BlindSpot: predict on forgotten data what a proxy predicts that was trained on the rest alone.

Tarun et al.: Deep Regression Unlearning (2023), as in EraseDiff's DDPM experiments: predictions are matched, and the
weight of the attention maps is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import (
    Batch,
    Draw,
    ObjectiveSettings,
    WeightedSum,
    assign,
    loss_and_gradient,
    unflatten,
)


class BlindspotSettings(ObjectiveSettings):
    """Options of the objective."""

    repeats: ClassVar[tuple[str, ...]] = ("proxy_steps",)

    name: Literal["blindspot"] = Field("blindspot", description="the method")
    preset: Literal["default"] = Field("default", description="starting point of the fields below")
    proxy_steps: int = Field(150, ge=1, description="steps that the proxy is trained on the retain set")
    proxy_learning_rate: float = Field(1e-3, gt=0, description="of the proxy's AdamW")
    forget_share: float = Field(0.1, gt=0, lt=1, description="share of the forget set in all data, its loss's weight")


class Blindspot(WeightedSum):
    """s ∇‖ε_θ(x_t, c) − ε_proxy(x_t, c)‖² + (1 − s) ∇L_r, the proxy being the same adapter trained on D_r alone."""

    Settings = BlindspotSettings

    @property
    def forget_weight(self) -> float:  # type: ignore[override]
        return float(self.settings.forget_share)

    @property
    def retain_weight(self) -> float:
        return 1.0 - float(self.settings.forget_share)

    def prepare(self, draw: Draw) -> Sequence[Tensor]:
        """Train the proxy, and put the adapter back as it was."""
        parameters = list(self.network.parameters)
        start = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=self.settings.proxy_learning_rate, weight_decay=0.0)
        try:
            for step in range(self.settings.proxy_steps):
                _, gradient = loss_and_gradient(self.network, draw(step)[1], self.loss)
                for parameter, part in zip(parameters, unflatten(gradient, parameters), strict=True):
                    parameter.grad = part
                optimizer.step()
            return [parameter.detach().clone() for parameter in parameters]
        finally:
            assign(parameters, start)
            optimizer.zero_grad()

    def forget_target(self, batch: Batch) -> Tensor | None:
        theta = [parameter.detach().clone() for parameter in self.network.parameters]
        assign(self.network.parameters, self.prepared)
        try:
            return self.network.predict(batch.noisy, batch.timesteps, batch.prompts)
        finally:
            assign(self.network.parameters, theta)
