"""Tiny pipelines of the transformers that are trained by flow matching: real architectures, random weights."""

from __future__ import annotations

import string

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tiny import tiny_pipeline
from transformers import T5Config, T5EncoderModel, T5Tokenizer


def tiny_vae(channels: int = 4) -> AutoencoderKL:
    """32 px pictures as 4x4 latents, scaled and shifted."""
    torch.manual_seed(5)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.36,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def tiny_t5() -> tuple[T5Tokenizer, T5EncoderModel]:
    """Letters as tokens, 32 dimensions."""
    torch.manual_seed(6)
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in string.printable[:95])]
    vocab += [("<extra_id_0>", 0.0)]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=1)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return tokenizer, T5EncoderModel(config)


def tiny_flux_pipeline(*, guidance: bool = True) -> FluxPipeline:
    """Two double and two single blocks of two heads."""
    clip = tiny_pipeline()
    tokenizer, encoder = tiny_t5()
    torch.manual_seed(7)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance),
        vae=tiny_vae(),
        text_encoder=clip.text_encoder,
        tokenizer=clip.tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        transformer=transformer,
    )
