"""Pipelines of the published architectures with random weights: shapes, not pictures, decide memory and time.

python scripts/benchmarks/random_bases.py sd15 FOLDER bfloat16
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from architectures import SD_1_5, SD_VAE, SDXL
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

CLIP_L: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
CLIP_BIGG: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


def build(name: str, folder: Path, dtype: torch.dtype) -> None:
    """Write the pipeline of 'sd15' or 'sdxl' to a folder."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    parts: dict[str, Any] = {
        "tokenizer": _tokenizer(),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L, projection_dim=768)),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**(SDXL if name == "sdxl" else SD_1_5))
        vae = AutoencoderKL(**SD_VAE)
    parts |= {"unet": filled(unet, dtype), "vae": filled(vae, dtype)}
    pipeline: Any
    if name == "sdxl":
        second = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_BIGG))
        pipeline = StableDiffusionXLPipeline(
            **parts, text_encoder_2=second, tokenizer_2=_tokenizer(), add_watermarker=False
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder)


def _tokenizer() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)


def filled(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A module built on the meta device, with small random weights."""
    module = module.to(dtype).to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 1:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
    return module


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]), getattr(torch, sys.argv[3]))
