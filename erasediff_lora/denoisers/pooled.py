"""What Stable Diffusion XL and 3 share: two CLIP encoders, and a pooled embedding beside the tokens'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.objectives.condition import Condition


class PooledStableDiffusion(StableDiffusion):
    """Conditions have a vector for each prompt beside the tokens'."""

    clips: ClassVar[tuple[str, str]] = ("text_encoder", "text_encoder_2")
    other_prompts: ClassVar[tuple[str, ...]] = ("prompt_2",)
    """Arguments of the pipeline's `encode_prompt` for the further encoders; None repeats the prompt."""

    @property
    def pooled_width(self) -> int:
        """P, the width of the pooled embedding."""
        raise NotImplementedError

    def _encode(self, prompts: list[str]) -> Condition:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, **dict.fromkeys(self.other_prompts), device=self.device, do_classifier_free_guidance=False
        )
        return Condition(tokens, pooled=pooled)

    def hollow_prompts(self, count: int) -> Condition:
        pooled = torch.zeros(count, self.pooled_width, dtype=self.dtype)
        return replace(super().hollow_prompts(count), pooled=pooled)

    def encode_clip_slots(self, prompts: Sequence[str], vectors: Tensor) -> list[Any]:
        """Outputs of both CLIP encoders; the vectors hold the embeddings for the two side by side."""
        parts = [getattr(self.pipeline, name) for name in self.clips]
        widths = [part.get_input_embeddings().weight.shape[1] for part in parts]
        return [
            self._encode_slots(getattr(self.pipeline, name), part, prompts, own, output_hidden_states=True)
            for name, part, own in zip(self.tokenizers, parts, vectors.split(widths, dim=-1), strict=False)
        ]

    @property
    def _table(self) -> Tensor:
        return torch.cat([getattr(self.pipeline, name).get_input_embeddings().weight for name in self.clips], dim=1)

    def _given(self, prompts: Sequence[str] | Condition) -> dict[str, Any]:
        pooled = {"pooled_prompt_embeds": prompts.pooled} if isinstance(prompts, Condition) else {}
        return super()._given(prompts) | pooled
