"""FLUX.2 klein: latents in patches that a batch norm has scaled, and three layers of Qwen3 side by side as tokens."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from erasediff_lora.denoisers.flow_transformer import ToldByQwen
from erasediff_lora.families.flux_2_klein import FAMILY, KLEIN_4B, KLEIN_9B
from erasediff_lora.objectives.condition import Condition

_ATTENTION = r".*\battn\.(to_q|to_k|to_v|to_out(\.0)?|add_q_proj|add_k_proj|add_v_proj|to_add_out|to_qkv_mlp_proj)"
_FEED_FORWARD = r".*\b(ff|ff_context)\.linear_(in|out)"
_READS_TOKENS = "context_embedder"
WIDTH_OF_4B = 3072


class Flux2Klein(ToldByQwen):
    """A FLUX.2 klein base, distilled or not: diffusers folder or hub id."""

    network_class: ClassVar[Any] = Flux2Transformer2DModel
    pipeline_class: ClassVar[Any] = Flux2KleinPipeline
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    guides_apart: ClassVar[bool] = True
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [_READS_TOKENS],
        "attention": [_ATTENTION],
        "attention_feed_forward": [_ATTENTION, _FEED_FORWARD],
    }

    @property
    def architecture(self) -> str:
        config = self.network.config
        width = config.num_attention_heads * config.attention_head_dim
        return KLEIN_4B.id if width <= WIDTH_OF_4B else KLEIN_9B.id

    @cached_property
    def is_distilled(self) -> bool:
        """Whether it draws in few steps, without guidance."""
        if self.source.is_dir():
            index = json.loads((self.source / "model_index.json").read_text(encoding="utf-8"))
            return bool(index.get("is_distilled", False))
        return bool(self.pipeline.config.is_distilled)

    def latent_shape(self, side: int) -> tuple[int, int, int]:
        """Patches of 16 pixels."""
        return int(self.network.config.in_channels), side // 16, side // 16

    def rows_drawn(self, guidance: float) -> int:
        return 2 if guidance > 1 and not self.is_distilled else 1

    def shift(self, scheduler: Any, noise: Tensor, steps: int) -> float | None:
        return compute_empirical_mu(noise.shape[2] * noise.shape[3], steps)

    def wrapped(self, prompts: list[str]) -> list[str]:
        template = self._reader[0].apply_chat_template
        asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return [template(a, tokenize=False, add_generation_prompt=True, enable_thinking=False) for a in asked]

    def _encode(self, prompts: list[str]) -> Condition:
        tokens, _ = self.pipeline.encode_prompt(prompts, self.device, max_sequence_length=self.text_tokens)
        return Condition(tokens)

    def hollow_prompts(self, count: int) -> Condition:
        width = int(self.network.config.joint_attention_dim)
        return Condition(torch.zeros(count, self.text_tokens, width, dtype=self.dtype))

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        return {_READS_TOKENS: [prompts.tokens]}

    def _predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition, guidance: float) -> Tensor:
        height, width = noisy.shape[2:]
        one, rows, columns = torch.arange(1), torch.arange(height), torch.arange(width)
        found = self.network(
            hidden_states=noisy.flatten(2).permute(0, 2, 1),
            timestep=self.noise_scheduler.sigmas(timesteps).to(noisy.dtype),
            encoder_hidden_states=prompts.tokens,
            txt_ids=torch.cartesian_prod(one, one, one, torch.arange(prompts.tokens.shape[1])).to(noisy.device),
            img_ids=torch.cartesian_prod(one, rows, columns, one).to(noisy.device),
            return_dict=False,
        )[0]
        return found.permute(0, 2, 1).reshape(noisy.shape)

    def _given(self, prompts: Any) -> dict[str, Any]:
        if not isinstance(prompts, Condition):
            return {"prompt": list(prompts), "max_sequence_length": self.text_tokens}
        empty = self.encode_prompts([""] * len(prompts))
        return {"prompt_embeds": prompts.tokens, "negative_prompt_embeds": empty.tokens}

    def drawn_latents(self, drawn: Tensor, height: int, width: int) -> Tensor:
        """The pipeline hands out what its autoencoder decodes."""
        return _scaled(self.pipeline.vae, drawn)

    def encode_with(self, vae: Any, pixels: Tensor) -> Tensor:
        return _scaled(vae, vae.encode(pixels).latent_dist.mode())

    def decode_with(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        return vae.decode(Flux2KleinPipeline._unpatchify_latents(latents * deviation + mean), return_dict=False)[0]


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents of an autoencoder (N, C, h, w) as the network takes them, (N, 4 C, h / 2, w / 2)."""
    patches = Flux2KleinPipeline._patchify_latents(latents)
    mean, deviation = _statistics(vae, patches)
    return (patches - mean) / deviation


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the patches, (1, 4 C, 1, 1)."""
    variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
    return vae.bn.running_mean.view(1, -1, 1, 1).to(like), torch.sqrt(variance).to(like)
