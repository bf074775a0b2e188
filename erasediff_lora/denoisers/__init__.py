"""What runs a base model: one class for each family, a `Denoiser` all."""

from __future__ import annotations

import importlib
from typing import Any

from erasediff_lora.denoisers.base import SLOT, Denoiser, NoisedBatch
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Model
from erasediff_lora.registry import FAMILIES


def load(model: Model) -> Denoiser:
    """Locate the base model that the recipe names; weights are read on first use.

    Raises:
        UserError: If there is no such base, it is of another family, or diffusers does not have the family's pipeline.
    """
    try:
        kind = class_of(FAMILIES[model.family].denoiser)
    except ImportError as error:
        what = f"cannot be loaded: {error}."
        raise UserError(Problem("model.family", model.family, what, "Run: pip install -U diffusers.")) from error
    denoiser: Denoiser = kind(model)
    return denoiser


def class_of(denoiser: str | type[Any]) -> type[Any]:
    """The class itself, or the one that 'package.module:Class' names."""
    if not isinstance(denoiser, str):
        return denoiser
    module, _, name = denoiser.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


__all__ = ["SLOT", "Denoiser", "NoisedBatch", "class_of", "load"]
