"""SalUn: relabel the forgotten data, and change only the weights that matter to it.

Fan et al.: SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import (
    Batch,
    Draw,
    ObjectiveSettings,
    WeightedSum,
    loss_and_gradient,
    required,
    unflatten,
)


class SaliencySettings(ObjectiveSettings):
    """Options of the objective; sources: OPTML-Group/Unlearn-Saliency, SD/README.md and DDPM/README.md."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "salun_sd": {"retain_weight": 0.5},
        "salun_ddpm": {"retain_weight": 1e-3},
    }
    repeats: ClassVar[tuple[str, ...]] = ("mask_batches",)

    name: Literal["saliency"] = Field("saliency", description="the method")
    preset: Literal["default", "salun_sd", "salun_ddpm"] = Field(
        "default", description="starting point of the fields below"
    )
    target_from: Literal["base", "current"] = Field("current", description="network that predicts the target")
    retain_weight: float = Field(0.5, ge=0, description="alpha, weight of the retain loss")
    density: float = Field(0.5, gt=0, le=1, description="rho, share of the entries that may change")
    mask_batches: int = Field(16, ge=1, description="forget batches that the saliency is summed over")

    @property
    def anchors(self) -> Literal["named", "any"] | None:
        return "named"


class Saliency(WeightedSum):
    """m ⊙ (∇‖ε_θ(x_t, c) − sg ε(x_t, c_a)‖² + α ∇L_r), m marking the top ρ of |∇L_noise(D_f)|.

    The top ρ are taken of all parameters together, as the authors do. A tensor without any gradient is not counted
    and not masked: in a fresh adapter those are the As, since B = 0.
    """

    Settings = SaliencySettings

    def prepare(self, draw: Draw) -> Sequence[Tensor]:
        """Sum the forget gradient over some batches, and mark its largest entries."""
        total: Tensor | None = None
        for step in range(self.settings.mask_batches):
            forget, _ = draw(step)
            _, gradient = loss_and_gradient(self.network, forget, self.loss)
            total = gradient if total is None else total + gradient
        parts = unflatten(required(total).abs(), self.network.parameters)
        told = torch.cat([torch.full((part.numel(),), bool(part.any()), device=part.device) for part in parts])
        return [top_share(required(total).abs(), told, self.settings.density)]

    def forget_target(self, batch: Batch) -> Tensor | None:
        predict = self.network.predict_base if self.settings.target_from == "base" else self.network.predict
        return predict(batch.noisy, batch.timesteps, required(batch.anchors))

    def adjusted(self, vector: Tensor, forget: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        return vector * self.prepared[0], {}


def top_share(saliency: Tensor, counted: Tensor, density: float) -> Tensor:
    """1 for the largest of the counted entries, `density` of them, and for all that are not counted; else 0. (N,)."""
    mask = torch.ones_like(saliency)
    mask[counted] = 0
    chosen = saliency.masked_fill(~counted, -1).topk(round(density * int(counted.sum()))).indices
    mask[chosen] = 1
    return mask
