"""Random adapters on the tiny base, as training would leave them, and what a pipeline with one draws."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from erasediff_lora.adapter import LoraAdapter, Provenance
from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.training.trainables.lora import LoraSettings, LowRank

TARGETS = ("attention", "attention_feed_forward", "attention_feed_forward_convolutions")
ALPHAS = (4.0, 2.5)
RANK = 4


def pipeline(folder: Path, **options: Any) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusionPipeline) -> Tensor:
    """Latents of two pictures, so that nothing is rounded to 8 bits."""
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    prompts = ["a photo of a cat", "a dog"]
    return pipe(prompts, height=32, width=32, num_inference_steps=3, generator=generators, output_type="latent").images


def inject(
    pipe: StableDiffusionPipeline,
    preset: str = "attention",
    alpha: float = 4.0,
    *,
    rank: int = RANK,
    seed: int = 0,
    provenance: Provenance | None = None,
    **options: Any,
) -> LoraAdapter:
    """Put a random adapter on the pipeline's UNet and return it as the trainer collects it."""
    base: Any = SimpleNamespace(network=pipe.unet, component="unet", target_presets=StableDiffusion.target_presets)
    low_rank = LowRank(LoraSettings(targets=preset, rank=rank, alpha=alpha, **options), base, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return low_rank.collect(provenance or Provenance(architecture="stable-diffusion-v1", concepts=("cat",)))


def random_adapter(folder: Path, preset: str = "attention", alpha: float = 4.0, **options: Any) -> LoraAdapter:
    return inject(pipeline(folder), preset, alpha, **options)


def close(one: Tensor, other: Tensor, relative: float = 1e-5) -> bool:
    """Within a share of the greatest value."""
    return float((one - other).abs().max()) <= relative * float(other.abs().max())
