"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from erasediff_lora.families.base import Architecture, Family, License, Shapes
from erasediff_lora.families.kohya import KohyaNames
from erasediff_lora.families.ldm import LdmNames, is_ldm

UNET_MODULES = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.")
OPENRAIL = License("openrail++")
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
    """Version 2 is told by the width of OpenCLIP's embeddings."""
    widths = cross_attention_widths(shapes)
    if widths == {768}:
        return "stable-diffusion-v1"
    return "stable-diffusion-v2-512" if widths == {1024} else None


FAMILY = Family(
    denoiser="erasediff_lora.denoisers.stable_diffusion:StableDiffusion",
    pipeline="StableDiffusionPipeline",
    component="unet",
    encoders=("text_encoder",),
    modules=UNET_MODULES,
    architectures=(
        Architecture("stable-diffusion-v1", 512, License("creativeml-openrail-m"), kohya="sd_v1"),
        Architecture("stable-diffusion-v2-512", 512, OPENRAIL, kohya="sd_v2"),
        Architecture("stable-diffusion-v2-768-v", 768, OPENRAIL, kohya="sd_v2"),
    ),
    recognise=_recognise,
    kohya=KohyaNames(
        prefixes={"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"},
        words=KOHYA_WORDS,
        to_ours=lambda name: None if is_ldm(name) else name,
        marks_v=True,
    ),
    single_file=LdmNames(
        clip={"cond_stage_model.transformer.text_model.": "text_encoder"},
        open_clip={"cond_stage_model.model.transformer.": "text_encoder"},
    ).slots,
)
