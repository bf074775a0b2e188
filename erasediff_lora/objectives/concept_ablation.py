"""Concept Ablation, model-based: draw the anchor where the concept is asked for.

Kumari et al.: Ablating Concepts in Text-to-Image Diffusion Models (2023). The authors noise pictures of the anchor;
here it is the pictures of the forget set.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import Batch, ObjectiveSettings, WeightedSum


class ConceptAblationSettings(ObjectiveSettings):
    """Options of the objective; the defaults are those of the authors' code (nupurkmr9/concept-ablation)."""

    name: Literal["concept_ablation"] = Field("concept_ablation", description="the method")
    preset: Literal["default"] = Field("default", description="starting point of the fields below")
    target_from: Literal["base", "current"] = Field("current", description="network that predicts the target")
    retain_weight: float = Field(1.0, ge=0, description="weight of the prior preservation, the retain loss")

    @property
    def anchors(self) -> Literal["named", "any"] | None:
        return "named"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("anchors",)


class ConceptAblation(WeightedSum):
    """∇‖ε_θ(x_t, c) − sg ε(x_t, c_a)‖² + w ∇L_r."""

    Settings = ConceptAblationSettings

    def forget_target(self, batch: Batch) -> Tensor | None:
        predict = self.network.predict_base if self.settings.target_from == "base" else self.network.predict
        return predict(batch.noisy, batch.timesteps, batch.extras["anchors"])
