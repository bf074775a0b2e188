"""Class-conditional diffusion in pixel space, as in the DDPM experiments."""

from __future__ import annotations

from erasediff_lora.families.base import Architecture, Family
from erasediff_lora.families.stable_diffusion import UNET_MODULES

ARCHITECTURE = Architecture("ddpm-class-conditional", 32)
FAMILY = Family(
    denoiser="erasediff_lora.denoisers.class_conditional:ClassConditional",
    pipeline="ClassConditionalPipeline",
    component="unet",
    encoders=(),
    modules=UNET_MODULES,
    architectures=(ARCHITECTURE,),
    in_diffusers=False,
    text_to_image=False,
    has_autoencoder=False,
)
