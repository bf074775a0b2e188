"""FLUX.1: T5's tokens, CLIP's pooled embedding, and in dev the strength of guidance, which it was distilled from."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from erasediff_lora.denoisers.flow_transformer import FlowTransformer, packed, places, unpacked
from erasediff_lora.families.flux import DEV, FAMILY, SCHNELL
from erasediff_lora.objectives.condition import Condition

_ATTENTION = r".*\battn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = r".*\b(ff|ff_context)\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.(proj_mlp|proj_out)"
_READS_TOKENS = "context_embedder"
_READS_POOLED = r"time_text_embed\.text_embedder\.linear_1"


class Flux(FlowTransformer):
    """A FLUX.1 base: diffusers folder, hub id, single file."""

    network_class: ClassVar[Any] = FluxTransformer2DModel
    pipeline_class: ClassVar[Any] = FluxPipeline
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")
    tokenizer_name: ClassVar[str] = "tokenizer_2"
    encoder_name: ClassVar[str] = "text_encoder_2"
    slot_token: ClassVar[str] = "<extra_id_0>"
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [_READS_TOKENS, _READS_POOLED],
        "attention": [_ATTENTION],
        "attention_feed_forward": [_ATTENTION, _FEED_FORWARD],
    }

    @property
    def architecture(self) -> str:
        return DEV.id if self.network.config.guidance_embeds else SCHNELL.id

    @property
    def text_tokens(self) -> int:
        """As the authors have it."""
        return 512 if self.network.config.guidance_embeds else 256

    def _encode(self, prompts: list[str]) -> Condition:
        """CLIP reads prompts without the tokens of no meaning."""
        tokens, pooled, _ = self.pipeline.encode_prompt(
            [prompt.replace(self.slot_token, "") for prompt in prompts],
            prompts,
            device=self.device,
            max_sequence_length=self.text_tokens,
        )
        return Condition(tokens, pooled=pooled)

    def hollow_prompts(self, count: int) -> Condition:
        config = self.network.config
        tokens = torch.zeros(count, self.text_tokens, config.joint_attention_dim, dtype=self.dtype)
        return Condition(tokens, pooled=torch.zeros(count, config.pooled_projection_dim, dtype=self.dtype))

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        return {_READS_TOKENS: [prompts.tokens], _READS_POOLED: [prompts.required_pooled[:, None]]}

    def _predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition, guidance: float) -> Tensor:
        height, width = noisy.shape[2:]
        strength = None
        if self.network.config.guidance_embeds:
            strength = torch.full((len(noisy),), guidance, device=noisy.device)
        patches = self.network(
            hidden_states=packed(noisy),
            timestep=self.noise_scheduler.sigmas(timesteps).to(noisy.dtype),
            guidance=strength,
            pooled_projections=prompts.pooled,
            encoder_hidden_states=prompts.tokens,
            txt_ids=noisy.new_zeros(prompts.tokens.shape[1], 3),
            img_ids=places(height, width, noisy),
        ).sample
        return unpacked(patches, height, width)

    def _given(self, prompts: Any) -> dict[str, Any]:
        if not isinstance(prompts, Condition):
            return {"prompt": list(prompts), "max_sequence_length": self.text_tokens}
        return {"prompt_embeds": prompts.tokens, "pooled_prompt_embeds": prompts.pooled}

    def drawn_latents(self, drawn: Tensor, height: int, width: int) -> Tensor:
        return unpacked(drawn, height // 8, width // 8)
