"""Fine-tuning: train on what is to be kept, and hope that the rest fades."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import Batch, ObjectiveSettings, WeightedSum


class FinetuneSettings(ObjectiveSettings):
    """Options of the objective."""

    falls: ClassVar[bool] = False
    name: Literal["finetune"] = Field("finetune", description="the method")
    preset: Literal["default"] = Field("default", description="starting point of the fields below")


class Finetune(WeightedSum):
    """∇L_r."""

    Settings = FinetuneSettings
    retain_weight = 1.0

    def forget_target(self, batch: Batch) -> Tensor | None:
        return None
