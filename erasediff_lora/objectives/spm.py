"""SPM: away from the concept, and nothing else moved under conditions from all over the place.

Lyu et al.: One-dimensional Adapter to Rule Them All, 2024. Their adapter has rank 1, and a strength that depends on the
prompt when it draws; here it is the recipe's, and what a LoRA cannot hold is left out. They draw x_t with the erased
model itself; here it is the noised pictures of the forget set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import Batch, ObjectiveSettings, WeightedSum, loss_and_gradient, squared_errors


class SpmSettings(ObjectiveSettings):
    """Options of the objective."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        # The authors' code (Con6924/SPM, PromptSettings): guidance 1 away from the concept, la_strength 1000.
        "spm_sd": {"guidance": 1.0, "anchoring": 1000.0},
    }
    name: Literal["spm"] = Field("spm", description="the method")
    preset: Literal["default", "spm_sd"] = Field("default", description="starting point of the fields below")
    guidance: float = Field(1.0, ge=0, description="eta, guidance away from the concept")
    anchoring: float = Field(1000.0, ge=0, description="weight of the latent anchoring, on random conditions")
    retain_weight: float = Field(0.0, ge=0, description="weight of a retain loss, which the paper has none of")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("empty", "scattered") if self.anchoring else ("empty",)


class Spm(WeightedSum):
    """∇‖ε_θ(x_t, c) − sg[ε_0(x_t, ∅) − η(ε_0(x_t, c) − ε_0(x_t, ∅))]‖² + λ ∇‖ε_θ(x_t, r) − ε_0(x_t, r)‖² + w ∇L_r.

    Each r is a random condition of the concept's size, taken with the probability 1 − cos(r, c).
    """

    Settings = SpmSettings
    curves = WeightedSum.curves | {"anchoring_loss": "latent anchoring"}

    def forget_target(self, batch: Batch) -> Tensor | None:
        empty = self.network.predict_base(batch.noisy, batch.timesteps, batch.extras["empty"])
        concept = self.network.predict_base(batch.noisy, batch.timesteps, batch.prompts)
        return empty - self.settings.guidance * (concept - empty)

    def adjusted(self, vector: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """With the latent anchoring, on the forgotten pictures."""
        if not self.settings.anchoring:
            return vector, {}
        forget = [batch for batch in batches if "scattered" in batch.extras]
        loss, gradient = loss_and_gradient(self.network, forget, self._moved)
        return vector + self.settings.anchoring * gradient, {"anchoring_loss": loss}

    def _moved(self, batch: Batch) -> Tensor:
        """How far the prediction for random conditions is from the base's."""
        scattered = batch.extras["scattered"]
        with torch.no_grad():
            base = self.network.predict_base(batch.noisy, batch.timesteps, scattered)
        return squared_errors(self.network.predict(batch.noisy, batch.timesteps, scattered), base).mean()
