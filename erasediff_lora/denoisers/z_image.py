"""Z-Image: lists of latents and of Qwen3's tokens, time that runs the other way, and the negative velocity."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from erasediff_lora.denoisers.flow_transformer import ToldByQwen
from erasediff_lora.families.z_image import ARCHITECTURE, FAMILY
from erasediff_lora.objectives.condition import Condition

_ATTENTION = r".*\battention\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r".*\bfeed_forward\.w[123]"
_READS_TOKENS = r"cap_embedder\.1"


class ZImage(ToldByQwen):
    """A Z-Image base: diffusers folder, hub id, single file."""

    network_class: ClassVar[Any] = ZImageTransformer2DModel
    pipeline_class: ClassVar[Any] = ZImagePipeline
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [_READS_TOKENS],
        "attention": [_ATTENTION],
        "attention_feed_forward": [_ATTENTION, _FEED_FORWARD],
    }

    @property
    def architecture(self) -> str:
        return ARCHITECTURE.id

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        return int(self.network.config.in_channels), side // 8, side // 8

    def rows_drawn(self, guidance: float) -> int:
        """Its guidance counts from 0."""
        return 2 if guidance > 0 else 1

    def combined(self, prompted: Tensor, empty: Tensor, guidance: float) -> Tensor:
        return -(-prompted + guidance * (empty - prompted))

    def wrapped(self, prompts: list[str]) -> list[str]:
        """As the language model is asked."""
        template = self._reader[0].apply_chat_template
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return [template(a, tokenize=False, add_generation_prompt=True, enable_thinking=True) for a in asked]

    def _encode(self, prompts: list[str]) -> Condition:
        told, _ = self.pipeline.encode_prompt(
            list(prompts), self.device, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return Condition.of(told)

    def hollow_prompts(self, count: int) -> Condition:
        return Condition(torch.zeros(count, self.text_tokens, self.network.config.cap_feat_dim, dtype=self.dtype))

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        """The layer reads them normalised."""
        with torch.no_grad():
            return {_READS_TOKENS: [self.network.cap_embedder[0](prompts.tokens)]}

    def _predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition, guidance: float) -> Tensor:
        thousandths = (self.noise_scheduler.sigmas(timesteps) * 1000).float()
        tokens = [row[:length] for row, length in zip(prompts.tokens, prompts.lengths, strict=True)]
        latents = list(noisy.to(self.dtype).unsqueeze(2).unbind())
        found = self.network(latents, (1000 - thousandths) / 1000, tokens, return_dict=False)[0]
        return -torch.stack(list(found)).squeeze(2).to(noisy.dtype)

    def _given(self, prompts: Any) -> dict[str, Any]:
        if not isinstance(prompts, Condition):
            return {"prompt": list(prompts), "max_sequence_length": self.text_tokens}
        empty = self.encode_prompts([""]).tokens[0]
        told = [row[:length] for row, length in zip(prompts.tokens, prompts.lengths, strict=True)]
        return {"prompt_embeds": told, "negative_prompt_embeds": [empty] * len(told)}
