"""Model families. A new one is a file here and a line in DENOISERS."""

from __future__ import annotations

from erasediff_lora.denoisers.base import SLOT, Denoiser
from erasediff_lora.denoisers.class_conditional import ClassConditional
from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.denoisers.stable_diffusion_3 import StableDiffusion3
from erasediff_lora.denoisers.stable_diffusion_xl import StableDiffusionXL
from erasediff_lora.recipe import Model

DENOISERS: dict[str, type[Denoiser]] = {
    "stable_diffusion": StableDiffusion,
    "stable_diffusion_xl": StableDiffusionXL,
    "stable_diffusion_3": StableDiffusion3,
    "class_conditional": ClassConditional,
}


def load(model: Model) -> Denoiser:
    """Locate the base model that the recipe names; weights are read on first use."""
    return DENOISERS[model.family](model)  # type: ignore[call-arg]


__all__ = ["DENOISERS", "SLOT", "Denoiser", "load"]
