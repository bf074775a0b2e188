"""Erased Stable Diffusion: turn guidance towards the concept into guidance away from it.

Gandikota et al.: Erasing Concepts from Diffusion Models (2023). The authors draw x_t with the erased model
itself, at guidance 3; here it is the noised pictures of the forget set.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import Batch, ObjectiveSettings, WeightedSum


class EsdSettings(ObjectiveSettings):
    """Options of the objective."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        # The authors' code since its rewrite for diffusers (rohitgandikota/erasing, esd_sd.py): ε_c − 2 (ε_c − ε_∅),
        # which is ε_∅ − 1 (ε_c − ε_∅).
        "esd_sd": {"guidance": 1.0},
    }
    name: Literal["esd"] = Field("esd", description="the method")
    preset: Literal["default", "esd_sd"] = Field("default", description="starting point of the fields below")
    guidance: float = Field(1.0, ge=0, description="eta, guidance away from the concept; 1 in the paper")
    retain_weight: float = Field(0.0, ge=0, description="weight of a retain loss, which the paper has none of")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("empty",)


class Esd(WeightedSum):
    """∇‖ε_θ(x_t, c) − sg[ε_0(x_t, ∅) − η(ε_0(x_t, c) − ε_0(x_t, ∅))]‖² + w ∇L_r."""

    Settings = EsdSettings

    def forget_target(self, batch: Batch) -> Tensor | None:
        empty = self.network.predict_base(batch.noisy, batch.timesteps, batch.extras["empty"])
        concept = self.network.predict_base(batch.noisy, batch.timesteps, batch.prompts)
        return empty - self.settings.guidance * (concept - empty)
