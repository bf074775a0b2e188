"""Qwen-Image: packed latents of an autoencoder for films, and the tokens of Qwen2.5-VL with their mask."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor

from erasediff_lora.denoisers.flow_transformer import ToldByQwen, packed, unpacked
from erasediff_lora.families.qwen_image import ARCHITECTURE, FAMILY
from erasediff_lora.objectives.condition import Condition

_ATTENTION = r".*\battn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = r".*\b(img_mlp|txt_mlp)\.net\.(0\.proj|2)"
_READS_TOKENS = "txt_in"


class QwenImage(ToldByQwen):
    """A Qwen-Image base: diffusers folder or hub id."""

    network_class: ClassVar[Any] = QwenImageTransformer2DModel
    pipeline_class: ClassVar[Any] = QwenImagePipeline
    encoders: ClassVar[tuple[str, ...]] = FAMILY.encoders
    guides_apart: ClassVar[bool] = True
    target_presets: ClassVar[dict[str, list[str]]] = {
        "text": [_READS_TOKENS],
        "attention": [_ATTENTION],
        "attention_feed_forward": [_ATTENTION, _FEED_FORWARD],
    }

    @property
    def architecture(self) -> str:
        return ARCHITECTURE.id

    @property
    def prefix_tokens(self) -> int:
        return int(self.pipeline.prompt_template_encode_start_idx)

    def wrapped(self, prompts: list[str]) -> list[str]:
        return [self.pipeline.prompt_template_encode.format(prompt) for prompt in prompts]

    def rows_drawn(self, guidance: float) -> int:
        return 2 if guidance > 1 else 1

    def _encode(self, prompts: list[str]) -> Condition:
        tokens, mask = self.pipeline.encode_prompt(prompts, self.device, max_sequence_length=self.text_tokens)
        return Condition(tokens, None if mask is None else mask.bool())

    def hollow_prompts(self, count: int) -> Condition:
        width = int(self.network.config.joint_attention_dim)
        return Condition(torch.zeros(count, self.text_tokens, width, dtype=self.dtype))

    def prompt_tokens(self, prompts: Condition) -> dict[str, list[Tensor]]:
        """The layer reads them normalised."""
        with torch.no_grad():
            return {_READS_TOKENS: [self.network.txt_norm(prompts.tokens)]}

    def _predict(self, noisy: Tensor, timesteps: Tensor, prompts: Condition, guidance: float) -> Tensor:
        height, width = noisy.shape[2:]
        patches = self.network(
            hidden_states=packed(noisy),
            timestep=self.noise_scheduler.sigmas(timesteps).to(noisy.dtype),
            encoder_hidden_states=prompts.tokens,
            encoder_hidden_states_mask=prompts.mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
            return_dict=False,
        )[0]
        return unpacked(patches, height, width)

    def combined(self, prompted: Tensor, empty: Tensor, guidance: float) -> Tensor:
        """Each patch keeps the length that it has without guidance."""
        height, width = prompted.shape[2:]
        plain, other = packed(prompted), packed(empty)
        both = other + guidance * (plain - other)
        return unpacked(
            both * (torch.norm(plain, dim=-1, keepdim=True) / torch.norm(both, dim=-1, keepdim=True)), height, width
        )

    def guided_by(self, guidance: float) -> dict[str, Any]:
        return {"true_cfg_scale": guidance}

    def _given(self, prompts: Any) -> dict[str, Any]:
        if not isinstance(prompts, Condition):
            empty = {"negative_prompt": [""] * len(prompts)}
            return {"prompt": list(prompts), "max_sequence_length": self.text_tokens, **empty}
        empty_one = self.encode_prompts([""] * len(prompts))
        return {
            "prompt_embeds": prompts.tokens,
            "prompt_embeds_mask": prompts.mask,
            "negative_prompt_embeds": empty_one.tokens,
            "negative_prompt_embeds_mask": empty_one.mask,
        }

    def drawn_latents(self, drawn: Tensor, height: int, width: int) -> Tensor:
        return unpacked(drawn, height // 8, width // 8)

    def encode_with(self, vae: Any, pixels: Tensor) -> Tensor:
        """Of films of one picture."""
        mean, deviation = _statistics(vae, pixels)
        return ((vae.encode(pixels[:, :, None]).latent_dist.mode() - mean) / deviation)[:, :, 0]

    def decode_with(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        return vae.decode(latents[:, :, None] * deviation + mean, return_dict=False)[0][:, :, 0]


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents, (1, C, 1, 1, 1)."""
    found = (vae.config.latents_mean, vae.config.latents_std)
    mean, deviation = (torch.tensor(values).view(1, -1, 1, 1, 1).to(like) for values in found)
    return mean, deviation
