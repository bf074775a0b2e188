"""Stable Diffusion 3."""

from __future__ import annotations

from erasediff_lora.families.base import Architecture, Family, License, Shapes

ARCHITECTURE = Architecture(
    "stable-diffusion-3",
    1024,
    License(
        "other",
        name="stabilityai-ai-community",
        link="https://huggingface.co/stabilityai/stable-diffusion-3-medium/blob/main/LICENSE.md",
    ),
)


def _recognise(shapes: Shapes) -> str | None:
    return ARCHITECTURE.id if any(name.startswith("transformer.") for name in shapes) else None


FAMILY = Family(
    denoiser="erasediff_lora.denoisers.stable_diffusion_3:StableDiffusion3",
    pipeline="StableDiffusion3Pipeline",
    component="transformer",
    encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    modules=("transformer_blocks.",),
    architectures=(ARCHITECTURE,),
    recognise=_recognise,
    flow_matching=True,
)
