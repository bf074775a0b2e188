"""Stable Diffusion 3: a transformer trained by flow matching, with two CLIP encoders and T5, which may be left out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora.denoisers.base import SLOT
from erasediff_lora.denoisers.flow_matching import FlowMatching
from erasediff_lora.denoisers.pooled import packed
from erasediff_lora.denoisers.stable_diffusion import StableDiffusion

_ATTENTION = r".*\battn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = r".*\b(ff|ff_context)\.net\.(0\.proj|2)"


class StableDiffusion3(StableDiffusion):
    """A Stable Diffusion 3 base: diffusers folder or hub id.

    Prompt embeddings have a row more than the prompt has tokens: the pooled embedding, filled up with zeros.
    """

    component: ClassVar[str] = "transformer"
    network_class: ClassVar[Any] = SD3Transformer2DModel
    pipeline_class: ClassVar[Any] = StableDiffusion3Pipeline
    image_pipeline_class: ClassVar[Any] = StableDiffusion3Img2ImgPipeline
    pipeline_options: ClassVar[dict[str, Any]] = {}
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2", "tokenizer_3")
    optional: ClassVar[tuple[str, ...]] = ("text_encoder_3", "tokenizer_3")
    target_presets: ClassVar[dict[str, list[str]]] = {
        "attention": [_ATTENTION],
        "attention_feed_forward": [_ATTENTION, _FEED_FORWARD],
    }

    @cached_property
    def noise_scheduler(self) -> FlowMatching:
        return FlowMatching(self.pipeline.scheduler.config.num_train_timesteps)

    @property
    def architecture(self) -> str:
        return "stable-diffusion-3"

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        """The network is told σ in thousandths."""
        return self.network(
            hidden_states=noisy,
            timestep=self.noise_scheduler.sigmas(timesteps) * 1000,
            encoder_hidden_states=prompts[:, :-1],
            pooled_projections=self._pooled(prompts),
        ).sample

    def _pooled(self, prompts: Tensor) -> Tensor:
        return prompts[:, -1, : self.network.config.pooled_projection_dim]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        chunks = []
        for start in range(0, len(prompts), 32):
            texts = list(prompts[start : start + 32])
            tokens, _, pooled, _ = self.pipeline.encode_prompt(
                texts, None, None, device=self.device, do_classifier_free_guidance=False
            )
            chunks.append(packed(tokens, pooled))
        return torch.cat(chunks)

    def encode_slots(self, prompts: Sequence[str], vectors: Tensor) -> Tensor:
        """The vectors hold the embeddings for both CLIP encoders, side by side; T5 reads the prompt without SLOT."""
        rest = self.encode_prompts([prompt.replace(SLOT, "").strip() for prompt in prompts])[:, :-1]
        clips = [getattr(self.pipeline, name) for name in self.encoders[:2]]
        widths = [part.get_input_embeddings().weight.shape[1] for part in clips]
        outputs = [
            self._encode_slots(getattr(self.pipeline, name), part, prompts, own, output_hidden_states=True)
            for name, part, own in zip(self.tokenizers[:2], clips, vectors.split(widths, dim=1), strict=True)
        ]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        tokens = torch.cat([F.pad(tokens, (0, rest.shape[2] - tokens.shape[2])), rest[:, tokens.shape[1] :]], dim=1)
        return packed(tokens, torch.cat([output.text_embeds for output in outputs], dim=-1))

    @property
    def _table(self) -> Tensor:
        clips = [getattr(self.pipeline, name) for name in self.encoders[:2]]
        return torch.cat([part.get_input_embeddings().weight for part in clips], dim=1)

    def _given(self, prompts: Sequence[str] | Tensor) -> dict[str, Any]:
        if not isinstance(prompts, Tensor):
            return super()._given(prompts)
        return {"prompt_embeds": prompts[:, :-1], "pooled_prompt_embeds": self._pooled(prompts)}
