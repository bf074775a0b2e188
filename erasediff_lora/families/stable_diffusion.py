"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Mapping

from erasediff_lora.families.base import Architecture, Family, License
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.layouts import Layout, Shapes
from erasediff_lora.families.layouts.text_encoders import CLIP_L, OPEN_CLIP_H
from erasediff_lora.families.layouts.unet import UNet
from erasediff_lora.families.ldm import LdmNames, is_ldm

UNET_MODULES = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.")
OPENRAIL = License("openrail++")
INPAINTING_INPUTS = 9
KOHYA_WORDS = (
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v"),
    *("to_out", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj", "time_embedding", "add_embedding"),
    *("linear_1", "linear_2", "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers"),
    *("emb_layers", "skip_connection", "time_embed", "label_emb"),
    *("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
)


def cross_attention_widths(shapes: Shapes) -> set[int]:
    """Widths of the prompt embeddings that the layers read."""
    return {shape[1] for name, shape in shapes.items() if name.endswith(("attn2.to_k", "attn2.to_v"))}


def _recognise(shapes: Shapes) -> str | None:
    """Version 1 is told by the width of CLIP's embeddings; version 2 has two architectures of one structure."""
    widths = cross_attention_widths(shapes)
    return "stable-diffusion-v1" if widths == {768} else None


_CHANNELS, _DEPTHS = (320, 640, 1280, 1280), (1, 1, 1, 0)
_VERSION_1: tuple[Mapping[str, Layout], ...] = tuple(
    {"unet": UNet(_CHANNELS, _DEPTHS, 768, inputs=inputs), "text_encoder": CLIP_L} for inputs in (4, INPAINTING_INPUTS)
)
_VERSION_2: tuple[Mapping[str, Layout], ...] = tuple(
    {"unet": UNet(_CHANNELS, _DEPTHS, 1024, linear=True, inputs=inputs), "text_encoder": OPEN_CLIP_H}
    for inputs in (4, INPAINTING_INPUTS)
)
FAMILY = Family(
    denoiser="erasediff_lora.denoisers.stable_diffusion:StableDiffusion",
    pipeline="StableDiffusionPipeline",
    component="unet",
    encoders=("text_encoder",),
    modules=UNET_MODULES,
    architectures=(
        Architecture("stable-diffusion-v1", 512, License("creativeml-openrail-m"), "sd_v1", _VERSION_1),
        Architecture("stable-diffusion-v2-512", 512, OPENRAIL, "sd_v2", _VERSION_2),
        Architecture("stable-diffusion-v2-768-v", 768, OPENRAIL, "sd_v2", _VERSION_2),
    ),
    recognise=_recognise,
    kohya=KohyaNames(
        prefixes={"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"},
        words=KOHYA_WORDS,
        to_ours=lambda name: None if is_ldm(name) else name,
        marks_v=True,
    ),
    prefixes={
        "text_encoder": (
            *("lora_te1_", "text_encoders_clip_l_transformer_", "text_encoders_clip_h_transformer_"),
            *("clip_l_", "clip_h_"),
        )
    },
    single_file=LdmNames(
        clip={"cond_stage_model.transformer.text_model.": "text_encoder"},
        open_clip={"cond_stage_model.model.transformer.": "text_encoder"},
    ).slots,
)
