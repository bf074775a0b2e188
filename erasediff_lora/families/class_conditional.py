"""Class-conditional diffusion in pixel space, as in the DDPM experiments."""

from __future__ import annotations

from erasediff_lora.families.base import Architecture, Family
from erasediff_lora.families.stable_diffusion import UNET_MODULES

ARCHITECTURE = Architecture("ddpm-class-conditional", 32)
_IN_BLOCKS = (
    *("resnets.#.norm1", "resnets.#.conv1", "resnets.#.time_emb_proj", "resnets.#.norm2", "resnets.#.conv2"),
    *("resnets.#.conv_shortcut", "attentions.#.group_norm", "attentions.#.to_q", "attentions.#.to_k"),
    *("attentions.#.to_v", "attentions.#.to_out.0"),
)
PATHS = (
    *("conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "class_embedding", "conv_norm_out", "conv_out"),
    *(f"{block}.{path}" for block in ("down_blocks.#", "mid_block", "up_blocks.#") for path in _IN_BLOCKS),
    *("down_blocks.#.downsamplers.#.conv", "up_blocks.#.upsamplers.#.conv"),
)
FAMILY = Family(
    denoiser="erasediff_lora.denoisers.class_conditional:ClassConditional",
    pipeline="ClassConditionalPipeline",
    component="unet",
    encoders=(),
    modules=UNET_MODULES,
    architectures=(ARCHITECTURE,),
    paths={"unet": PATHS},
    in_diffusers=False,
    text_to_image=False,
    has_autoencoder=False,
)
