"""Erasure methods. A new one is a file here and a line in OBJECTIVES."""

from __future__ import annotations

from erasediff_lora.objectives.base import Batch, Direction, Network, Objective
from erasediff_lora.objectives.erasediff import EraseDiff, EraseDiffSettings

OBJECTIVES = {"erasediff": EraseDiff}
ObjectiveSettings = EraseDiffSettings


def create(settings: ObjectiveSettings, network: Network) -> Objective:
    """Build the objective that the settings name."""
    return OBJECTIVES[settings.name](settings, network)


__all__ = [
    "OBJECTIVES",
    "Batch",
    "Direction",
    "EraseDiff",
    "EraseDiffSettings",
    "Network",
    "Objective",
    "ObjectiveSettings",
    "create",
]
