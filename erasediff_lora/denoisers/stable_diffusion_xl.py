"""Stable Diffusion XL: two text encoders, a pooled embedding, and the picture's size as a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from torch import Tensor

from erasediff_lora.denoisers.pooled import PooledStableDiffusion
from erasediff_lora.families.stable_diffusion_xl import ARCHITECTURE, FAMILY
from erasediff_lora.objectives.condition import Condition

TIME_IDS = 6
"""Original height and width, top and left of the crop, target height and width."""


class StableDiffusionXL(PooledStableDiffusion):
    """A Stable Diffusion XL base: diffusers folder, hub id, or single file."""

    pipeline_class: ClassVar[Any] = StableDiffusionXLPipeline
    image_pipeline_class: ClassVar[Any] = StableDiffusionXLImg2ImgPipeline
    pipeline_options: ClassVar[dict[str, Any]] = {"add_watermarker": False}
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    inside: ClassVar[Mapping[str, str]] = {
        "text_encoder": "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
    }
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")

    @property
    def architecture(self) -> str:
        return ARCHITECTURE.id

    @property
    def pooled_width(self) -> int:
        config = self.network.config
        return int(config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim)

    @cached_property
    def _pixels_per_latent(self) -> int:
        return self.resolution // int(self.network.config.sample_size)

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        """The picture counts as uncropped, of the size that it has."""
        height, width = (side * self._pixels_per_latent for side in noisy.shape[2:])
        time_ids = torch.tensor([height, width, 0, 0, height, width], device=noisy.device, dtype=prompts.tokens.dtype)
        added = {"text_embeds": prompts.pooled, "time_ids": time_ids.expand(len(noisy), -1)}
        return self.network(noisy, timesteps, encoder_hidden_states=prompts.tokens, added_cond_kwargs=added).sample

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """The empty prompt is what guidance takes for it: zeros, where the base says so."""
        told = super().encode_prompts(prompts)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            for part in told.parts.values():
                part[[index for index, prompt in enumerate(prompts) if not prompt]] = 0
        return told

    def encode_slots(self, prompts: Sequence[str], vectors: Tensor) -> Condition:
        outputs = self.encode_clip_slots(prompts, vectors)
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Condition(tokens, pooled=outputs[-1].text_embeds)
