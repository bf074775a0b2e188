"""Stable Diffusion 3: a transformer trained by flow matching, with two CLIP encoders and T5, which may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora.denoisers import loading
from erasediff_lora.denoisers.base import SLOT
from erasediff_lora.denoisers.flow_matching import FlowMatching
from erasediff_lora.denoisers.pooled import PooledStableDiffusion
from erasediff_lora.denoisers.stable_diffusion import CLIP_TOKENS
from erasediff_lora.families.stable_diffusion_3 import ARCHITECTURE, FAMILY
from erasediff_lora.objectives.condition import Condition

T5_TOKENS = 256

_ATTENTION = r".*\battn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_READS_TOKENS = "context_embedder"
_READS_POOLED = r"time_text_embed\.text_embedder\.linear_1"
_FEED_FORWARD = r".*\b(ff|ff_context)\.net\.(0\.proj|2)"


class StableDiffusion3(PooledStableDiffusion):
    """A Stable Diffusion 3 base: diffusers folder or hub id."""

    component: ClassVar[str] = FAMILY.component
    network_class: ClassVar[Any] = SD3Transformer2DModel
    pipeline_class: ClassVar[Any] = StableDiffusion3Pipeline
    image_pipeline_class: ClassVar[Any] = StableDiffusion3Img2ImgPipeline
    pipeline_options: ClassVar[dict[str, Any]] = {}
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    guided_in_one_batch: ClassVar[bool] = False
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2", "tokenizer_3")
    other_prompts: ClassVar[tuple[str, ...]] = ("prompt_2", "prompt_3")
    reads: ClassVar[dict[str, int]] = {"tokenizer_3": T5_TOKENS}
    optional: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [_READS_TOKENS, _READS_POOLED],
        "attention": [_ATTENTION],
        "attention_feed_forward": [_ATTENTION, _FEED_FORWARD],
    }

    @cached_property
    def noise_scheduler(self) -> FlowMatching:
        if self.source.is_file():
            return FlowMatching(self.pipeline.scheduler.config.num_train_timesteps)
        with loading.readable(self.model):
            config = FlowMatchEulerDiscreteScheduler.load_config(self.source, subfolder="scheduler")
        return FlowMatching(config["num_train_timesteps"])

    @property
    def architecture(self) -> str:
        return ARCHITECTURE.id

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        """The network is told σ in thousandths."""
        return self.network(
            hidden_states=noisy,
            timestep=self.noise_scheduler.sigmas(timesteps) * 1000,
            encoder_hidden_states=prompts.tokens,
            pooled_projections=prompts.pooled,
        ).sample

    @property
    def pooled_width(self) -> int:
        return int(self.network.config.pooled_projection_dim)

    def hollow_prompts(self, count: int) -> Condition:
        width = int(self.network.config.joint_attention_dim)
        tokens = torch.zeros(count, CLIP_TOKENS + T5_TOKENS, width, dtype=self.dtype)
        return Condition(tokens, pooled=torch.zeros(count, self.pooled_width, dtype=self.dtype))

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        """Without cross attention: the tokens pass one layer before all blocks, and the pooled embedding another."""
        return {
            _READS_TOKENS: [prompts.tokens[:, :CLIP_TOKENS], prompts.tokens[:, CLIP_TOKENS:]],
            _READS_POOLED: [prompts.required_pooled[:, None]],
        }

    def encode_slots(self, prompts: Sequence[str], vectors: Tensor) -> Condition:
        """The vectors go to both CLIP encoders; T5 reads the prompt without SLOT."""
        rest = self.encode_prompts([prompt.replace(SLOT, "").strip() for prompt in prompts]).tokens
        outputs = self.encode_clip_slots(prompts, vectors)
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        tokens = torch.cat([F.pad(tokens, (0, rest.shape[2] - tokens.shape[2])), rest[:, tokens.shape[1] :]], dim=1)
        return Condition(tokens, pooled=torch.cat([output.text_embeds for output in outputs], dim=-1))
