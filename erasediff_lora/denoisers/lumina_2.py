"""Lumina-Image 2.0: Gemma's tokens with their mask, time that runs the other way, and the negative velocity."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor

from erasediff_lora.denoisers.flow_transformer import FlowTransformer
from erasediff_lora.families.lumina_2 import ARCHITECTURE, FAMILY
from erasediff_lora.objectives.condition import Condition

_ATTENTION = r".*\battn\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r".*\bfeed_forward\.linear_[123]"
_READS_TOKENS = r"time_caption_embed\.caption_embedder\.1"


class Lumina2(FlowTransformer):
    """A Lumina-Image 2.0 base: diffusers folder, hub id, single file."""

    network_class: ClassVar[Any] = Lumina2Transformer2DModel
    pipeline_class: ClassVar[Any] = Lumina2Pipeline
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    guides_apart: ClassVar[bool] = True
    slot_token: ClassVar[str] = "<unused0>"
    word_start: ClassVar[str] = " "
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [_READS_TOKENS],
        "attention": [_ATTENTION],
        "attention_feed_forward": [_ATTENTION, _FEED_FORWARD],
    }

    @property
    def architecture(self) -> str:
        return ARCHITECTURE.id

    @property
    def text_tokens(self) -> int:
        return 256

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        return int(self.network.config.in_channels), side // 8, side // 8

    def rows_drawn(self, guidance: float) -> int:
        return 2 if guidance > 1 else 1

    def wrapped(self, prompts: list[str]) -> list[str]:
        """As the pipeline asks: an empty prompt, which guidance leads away from, without the instruction."""
        return [f"{self.pipeline.system_prompt} <Prompt Start> {prompt}" if prompt else "" for prompt in prompts]

    def _encode(self, prompts: list[str]) -> Condition:
        tokens, mask = self.pipeline._get_gemma_prompt_embeds(self.wrapped(prompts), self.device, self.text_tokens)
        return Condition(tokens, mask.bool())

    def hollow_prompts(self, count: int) -> Condition:
        width = int(self.network.config.cap_feat_dim)
        return Condition(torch.zeros(count, self.text_tokens, width, dtype=self.dtype))

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        """The layer reads them normalised."""
        with torch.no_grad():
            return {_READS_TOKENS: [self.network.time_caption_embed.caption_embedder[0](prompts.tokens)]}

    def _predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition, guidance: float) -> Tensor:
        whole = prompts.masked(self.text_tokens)
        return -self.network(
            hidden_states=noisy,
            timestep=1 - self.noise_scheduler.sigmas(timesteps).to(noisy.dtype),
            encoder_hidden_states=whole.tokens,
            encoder_attention_mask=whole.mask,
            return_dict=False,
        )[0]

    def combined(self, prompted: Tensor, empty: Tensor, guidance: float) -> Tensor:
        """Each line of latents keeps the length that it has without guidance."""
        both = empty + guidance * (prompted - empty)
        return both * (torch.norm(prompted, dim=-1, keepdim=True) / torch.norm(both, dim=-1, keepdim=True))

    def _given(self, prompts: Any) -> dict[str, Any]:
        if not isinstance(prompts, Condition):
            return {"prompt": list(prompts), "max_sequence_length": self.text_tokens}
        both = Condition.cat([prompts, self.encode_prompts([""] * len(prompts))]).masked(self.text_tokens)
        told, empty = both.split(len(prompts))
        return {
            "prompt_embeds": told.tokens,
            "prompt_attention_mask": told.mask,
            "negative_prompt_embeds": empty.tokens,
            "negative_prompt_attention_mask": empty.mask,
        }
