"""Stable Diffusion 3: a transformer trained by flow matching, with two CLIP encoders and T5, which may be left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora.denoisers import noise_schedule
from erasediff_lora.denoisers.base import SLOT
from erasediff_lora.denoisers.flow_matching import FlowMatching
from erasediff_lora.denoisers.pooled import PooledStableDiffusion
from erasediff_lora.denoisers.stable_diffusion import CLIP_TOKENS
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import single_files_sd3
from erasediff_lora.families.stable_diffusion_3 import ARCHITECTURE, FAMILY
from erasediff_lora.objectives.condition import Condition

log = logging.getLogger(__name__)
T5_TOKENS = 256
TOKENIZER = (
    "Give the folder with its tokenizer.json: --model.parts '{tokenizer_3: FOLDER}'; ComfyUI's is"
    " comfy/text_encoders/t5_tokenizer."
)

_ATTENTION = r".*\battn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_READS_TOKENS = "context_embedder"
_READS_POOLED = r"time_text_embed\.text_embedder\.linear_1"
_FEED_FORWARD = r".*\b(ff|ff_context)\.net\.(0\.proj|2)"


class StableDiffusion3(PooledStableDiffusion):
    """A Stable Diffusion 3 base: diffusers folder, hub id or single file."""

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
    inside: ClassVar[Mapping[str, str]] = {name: begin for begin, name in single_files_sd3.ENCODERS.items()}
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [_READS_TOKENS, _READS_POOLED],
        "attention": [_ATTENTION],
        "attention_feed_forward": [_ATTENTION, _FEED_FORWARD],
    }

    @cached_property
    def noise_scheduler(self) -> FlowMatching:
        return FlowMatching.of(self)

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """T5, whose tokens may be zeros, unless both its weights and its tokenizer are at hand."""
        if "tokenizer_3" in self.files or (self.described and (self.described / "tokenizer_3").is_dir()):
            without = f"{self.source.name} has no T5"
            has_weights = "text_encoder_3" in self.files or self._holds_t5
        else:
            without = "nothing here has T5's tokenizer"
            has_weights = False
            if "text_encoder_3" in self.files:
                raise UserError(Problem("model.parts.tokenizer_3", None, f"is needed: {without}.", TOKENIZER))
        if has_weights:
            return ()
        if self.source.is_file():
            log.warning("%s: prompts are read by CLIP alone. %s", without, TOKENIZER)
        return "text_encoder_3", "tokenizer_3"

    @property
    def _holds_t5(self) -> bool:
        if self.source.is_dir():
            return (self.source / "text_encoder_3").is_dir()
        keys, _ = noise_schedule.written(self.model, self.source)
        return any(key.startswith(self.inside["text_encoder_3"]) for key in keys)

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
