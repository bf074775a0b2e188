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
    mean_squared_error,
    required,
    unflatten,
)


class SaliencySettings(ObjectiveSettings):
    """Options of the objective; sources: OPTML-Group/Unlearn-Saliency, SD/ and DDPM/."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "salun_sd": {"retain_weight": 0.5, "mask_guidance": 7.5},
        "salun_ddpm": {
            "retain_weight": 1e-3,
            "retain_reduction": "sum",
            "mask_guidance": 2.0,
            "mask_max_norm": 1.0,
        },
    }
    repeats: ClassVar[tuple[str, ...]] = ("mask_batches",)

    name: Literal["saliency"] = Field("saliency", description="the method")
    preset: Literal["default", "salun_sd", "salun_ddpm"] = Field(
        "default", description="starting point of the fields below"
    )
    target_from: Literal["base", "current"] = Field("current", description="network that predicts the target")
    retain_weight: float = Field(0.5, ge=0, description="alpha, weight of the retain loss")
    retain_reduction: Literal["mean", "sum"] = Field(
        "mean", description="of a picture's retain loss over its elements: what alpha weighs"
    )
    density: float = Field(0.5, gt=0, le=1, description="rho, share of the entries that may change")
    mask_batches: int = Field(16, ge=1, description="forget batches that the saliency is summed over")
    mask_guidance: float = Field(
        0.0, ge=0, description="w: the saliency is that of the guided prediction (1 + w) eps(c) - w eps(empty prompt)"
    )
    mask_max_norm: float | None = Field(
        None, gt=0, description="clip of a batch's gradient in that sum, its loss summed over a picture's elements"
    )

    @property
    def anchors(self) -> Literal["named", "any"] | None:
        return "named"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("anchors", "empty") if self.mask_guidance else ("anchors",)


class Saliency(WeightedSum):
    """m ⊙ (∇‖ε_θ(x_t, c) − sg ε(x_t, c_a)‖² + α ∇L_r), m marking the top ρ of |Σ ∇L_noise(D_f)|.

    The top ρ are taken of all parameters together, as the authors do. A tensor without any gradient is not counted
    and not masked: in a fresh adapter those are the As, since B = 0.

    Their DDPM code sums the retain loss over a picture's elements and averages the forget loss (`retain_reduction:
    sum`); their SD code averages both. Left as it is here: the direction is clipped after the mask and not before it;
    timesteps are independent, where their DDPM code pairs t with T − 1 − t; no forget or anchor prompt is dropped,
    where it drops a tenth; the anchor is the recipe's, where both take the next class of the data set.
    """

    Settings = SaliencySettings

    def prepare(self, draw: Draw) -> Sequence[Tensor]:
        """Sum the forget gradient over some batches, and mark its largest entries."""
        total: Tensor | None = None
        for step in range(self.settings.mask_batches):
            forget, _ = draw(step)
            _, gradient = loss_and_gradient(self.network, forget, self._guided_loss)
            if self.settings.mask_max_norm is not None:
                norm = gradient.norm() * forget[0].target[0].numel()
                gradient = gradient * (self.settings.mask_max_norm / norm).clamp_max(1)
            total = gradient if total is None else total + gradient
        parts = unflatten(required(total).abs(), self.network.parameters)
        told = torch.cat([torch.full((part.numel(),), bool(part.any()), device=part.device) for part in parts])
        return [top_share(required(total).abs(), told, self.settings.density)]

    def forget_target(self, batch: Batch) -> Tensor | None:
        predict = self.network.predict_base if self.settings.target_from == "base" else self.network.predict
        return predict(batch.noisy, batch.timesteps, batch.extras["anchors"])

    def retain_weight_for(self, retain: Sequence[Batch]) -> float:
        elements = retain[0].target[0].numel() if self.settings.retain_reduction == "sum" else 1
        return self.retain_weight * elements

    def adjusted(self, vector: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        return vector * self.prepared[0], {}

    def _guided_loss(self, batch: Batch) -> Tensor:
        guidance = self.settings.mask_guidance
        if not guidance:
            return self.loss(batch)
        prediction = self.network.predict(batch.noisy, batch.timesteps, batch.prompts)
        unconditional = self.network.predict(batch.noisy, batch.timesteps, batch.extras["empty"])
        return mean_squared_error((1 + guidance) * prediction - guidance * unconditional, batch.target, batch.weights)


def top_share(saliency: Tensor, counted: Tensor, density: float) -> Tensor:
    """1 for the largest of the counted entries, `density` of them, and for all that are not counted; else 0. (N,)."""
    mask = torch.ones_like(saliency)
    mask[counted] = 0
    chosen = saliency.masked_fill(~counted, -1).topk(round(density * int(counted.sum()))).indices
    mask[chosen] = 1
    return mask
