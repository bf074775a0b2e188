"""Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Mapping

from erasediff_lora.families.base import Architecture, Family
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.layouts import Layout, Shapes
from erasediff_lora.families.layouts.text_encoders import CLIP_L, OPEN_CLIP_G
from erasediff_lora.families.layouts.unet import UNet
from erasediff_lora.families.ldm import SDXL, LdmNames, is_ldm
from erasediff_lora.families.stable_diffusion import (
    INPAINTING_INPUTS,
    KOHYA_WORDS,
    OPENRAIL,
    UNET_MODULES,
    cross_attention_widths,
)

_SIZES: tuple[Mapping[str, Layout], ...] = tuple(
    {
        "unet": UNet((320, 640, 1280), (0, 2, 10), 2048, linear=True, inputs=inputs, pooled=2816),
        "text_encoder": CLIP_L,
        "text_encoder_2": OPEN_CLIP_G,
    }
    for inputs in (4, INPAINTING_INPUTS)
)
ARCHITECTURE = Architecture("stable-diffusion-xl-v1-base", 1024, OPENRAIL, "sdxl_base_v1-0", _SIZES)


def _recognise(shapes: Shapes) -> str | None:
    has_second = any(name.startswith("text_encoder_2.") for name in shapes)
    return ARCHITECTURE.id if has_second or cross_attention_widths(shapes) == {2048} else None


def _to_ldm(name: str) -> str | None:
    component, _, path = name.partition(".")
    theirs = SDXL.to_ldm(path) if component == "unet" else path
    return None if theirs is None else f"{component}.{theirs}"


def _to_diffusers(name: str) -> str | None:
    component, _, path = name.partition(".")
    if component != "unet":
        return name
    ours = SDXL.to_diffusers(path) if is_ldm(name) else None
    return None if ours is None else f"unet.{ours}"


FAMILY = Family(
    denoiser="erasediff_lora.denoisers.stable_diffusion_xl:StableDiffusionXL",
    pipeline="StableDiffusionXLPipeline",
    component="unet",
    encoders=("text_encoder", "text_encoder_2"),
    modules=(*UNET_MODULES, "add_embedding."),
    architectures=(ARCHITECTURE,),
    recognise=_recognise,
    kohya=KohyaNames(
        prefixes={
            "unet": "lora_unet_",
            "text_encoder": "lora_te1_text_model_",
            "text_encoder_2": "lora_te2_text_model_",
        },
        words=KOHYA_WORDS,
        to_theirs=_to_ldm,
        to_ours=_to_diffusers,
        implementation="https://github.com/Stability-AI/generative-models",
    ),
    prefixes={
        "text_encoder": ("text_encoders_clip_l_transformer_", "clip_l_"),
        "text_encoder_2": ("text_encoders_clip_g_transformer_", "clip_g_"),
    },
    single_file=LdmNames(
        clip={"conditioner.embedders.0.transformer.text_model.": "text_encoder"},
        open_clip={"conditioner.embedders.1.model.transformer.": "text_encoder_2"},
    ).slots,
)
