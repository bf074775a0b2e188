"""Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from erasediff_lora.families import single_files_sd3
from erasediff_lora.families.base import Architecture, Family, License
from erasediff_lora.families.layouts import Layout, Shapes
from erasediff_lora.families.layouts.mmdit import MMDiT
from erasediff_lora.families.layouts.text_encoders import CLIP_L, OPEN_CLIP_G, T5

_ENCODERS: dict[str, Layout] = {
    "text_encoder": replace(CLIP_L, projection=True),
    "text_encoder_2": OPEN_CLIP_G,
    "text_encoder_3": T5(),
}
_TRANSFORMERS = (MMDiT(24), MMDiT(24, dual=13, qk_norm=True), MMDiT(38, qk_norm=True))  # 3, 3.5 medium, 3.5 large
_SIZES: tuple[Mapping[str, Layout], ...] = tuple(
    {"transformer": transformer, **_ENCODERS} for transformer in _TRANSFORMERS
)
ARCHITECTURE = Architecture(
    "stable-diffusion-3",
    1024,
    License(
        "other",
        name="stabilityai-ai-community",
        link="https://huggingface.co/stabilityai/stable-diffusion-3-medium/blob/main/LICENSE.md",
    ),
    sizes=_SIZES,
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
    prefixes={
        "transformer": ("lora_transformer_",),
        "text_encoder": ("lora_te1_", "text_encoders_clip_l_transformer_", "clip_l_"),
        "text_encoder_2": ("lora_te2_", "text_encoders_clip_g_transformer_", "clip_g_"),
        "text_encoder_3": ("lora_te3_", "text_encoders_t5xxl_transformer_", "t5_"),
    },
    single_file=single_files_sd3.slots,
    flow_matching=True,
    searched_in="outputs",
)
