"""What is trained of a network. A new kind is a file here and a line in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erasediff_lora.recipe.tables import AdapterSettings
from erasediff_lora.registry import TRAINABLES
from erasediff_lora.training.trainables.base import Trainable

if TYPE_CHECKING:
    from erasediff_lora.denoisers import Denoiser


def create(settings: AdapterSettings, denoiser: Denoiser, seed: int) -> Trainable:
    """Make of the denoiser's frozen network what the settings say.

    Args:
        settings: The recipe's adapter.
        denoiser: The base.
        seed: Of an adapter's start.

    Raises:
        UserError: If the targets match nothing, or the weights are not of a dtype that can be trained.
    """
    trainable: Trainable = TRAINABLES[settings.kind](settings, denoiser, seed)
    return trainable


__all__ = ["Trainable", "create"]
