"""CLIP's embedding of the picture."""

from __future__ import annotations

from erasediff_lora.evaluation.clip_model import Clip, rehearse
from erasediff_lora.evaluation.features.base import Extract, Features


class ClipFeatures(Features):
    """As many as the model's embedding has."""

    needs = "PATH"

    @classmethod
    def rehearse(cls, weights: str) -> object:
        return rehearse(weights)

    @classmethod
    def load(cls, weights: str) -> Extract:
        return Clip(weights, "evaluation.distances.features", f"clip:{weights}").images
