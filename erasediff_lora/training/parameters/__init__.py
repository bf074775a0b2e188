"""What is trained of a network. A new kind is a file here, its settings in the recipe, and a line in TRAINABLES."""

from __future__ import annotations

from erasediff_lora.denoisers import Denoiser
from erasediff_lora.recipe import AdapterSettings
from erasediff_lora.training.parameters.base import Trainable
from erasediff_lora.training.parameters.full import FullWeights
from erasediff_lora.training.parameters.lora import LowRank

TRAINABLES = {"lora": LowRank, "none": FullWeights}


def create(settings: AdapterSettings, denoiser: Denoiser, seed: int) -> Trainable:
    """Make of the denoiser's frozen network what the settings say.

    Args:
        settings: The recipe's adapter.
        denoiser: The base.
        seed: Of an adapter's start.

    Raises:
        UserError: If the targets match nothing, or the weights are not of a dtype that can be trained.
    """
    return TRAINABLES[settings.kind](settings, denoiser, seed)


__all__ = ["TRAINABLES", "Trainable", "create"]
