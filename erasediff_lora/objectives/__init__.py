"""Erasure methods. A new one is a file here and a line in OBJECTIVES."""

from __future__ import annotations

from typing import Any

from erasediff_lora.objectives.base import Batch, Direction, Draw, Network, Objective, ObjectiveSettings
from erasediff_lora.objectives.blindspot import Blindspot
from erasediff_lora.objectives.concept_ablation import ConceptAblation
from erasediff_lora.objectives.erasediff import EraseDiff, EraseDiffSettings
from erasediff_lora.objectives.esd import Esd
from erasediff_lora.objectives.finetune import Finetune
from erasediff_lora.objectives.negative_gradient import NegativeGradient
from erasediff_lora.objectives.saliency import Saliency
from erasediff_lora.objectives.selective_amnesia import SelectiveAmnesia

OBJECTIVES: dict[str, Any] = {
    "erasediff": EraseDiff,
    "finetune": Finetune,
    "negative_gradient": NegativeGradient,
    "saliency": Saliency,
    "selective_amnesia": SelectiveAmnesia,
    "esd": Esd,
    "concept_ablation": ConceptAblation,
    "blindspot": Blindspot,
}


def create(settings: ObjectiveSettings, network: Network) -> Objective:
    """Build the objective that the settings name."""
    objective: Objective = OBJECTIVES[settings.name](settings, network)
    return objective


__all__ = [
    "OBJECTIVES",
    "Batch",
    "Direction",
    "Draw",
    "EraseDiff",
    "EraseDiffSettings",
    "Network",
    "Objective",
    "ObjectiveSettings",
    "create",
]
