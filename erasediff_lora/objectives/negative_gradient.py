"""Negative gradient: ascend the denoising loss of forgotten data (NegGrad; Golatkar et al. 2020)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import Batch, ObjectiveSettings, WeightedSum


class NegativeGradientSettings(ObjectiveSettings):
    """Options of the objective."""

    falls: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        # `ga` in the DDPM code of SalUn (OPTML-Group/Unlearn-Saliency): both losses are sums over a picture's elements,
        # so that their ratio is that of means.
        "salun_ddpm": {"retain_weight": 1e-3},
    }
    name: Literal["negative_gradient"] = Field("negative_gradient", description="the method")
    preset: Literal["default", "salun_ddpm"] = Field("default", description="starting point of the fields below")
    retain_weight: float = Field(1.0, ge=0, description="weight of the retain loss")


class NegativeGradient(WeightedSum):
    """−∇L_noise(D_f) + w ∇L_r."""

    Settings = NegativeGradientSettings
    forget_weight = -1.0

    def forget_target(self, batch: Batch) -> Tensor | None:
        return batch.target
