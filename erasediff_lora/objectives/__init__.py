"""Erasure methods. A new one is a file here and a line in the registry."""

from __future__ import annotations

from erasediff_lora.objectives.base import Batch, Direction, Draw, Network, Objective, ObjectiveSettings
from erasediff_lora.objectives.targets import aim
from erasediff_lora.registry import OBJECTIVES


def create(settings: ObjectiveSettings, network: Network) -> Objective:
    """Build the objective that the settings name."""
    objective: Objective = OBJECTIVES[settings.name](settings, network)
    return objective


__all__ = [
    "Batch",
    "Direction",
    "Draw",
    "Network",
    "Objective",
    "ObjectiveSettings",
    "aim",
    "create",
]
