"""What Stable Diffusion XL and 3 share: two CLIP encoders, and a pooled embedding beside the tokens'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora.denoisers.stable_diffusion import StableDiffusion


class PooledStableDiffusion(StableDiffusion):
    """Prompt embeddings have a row more than the prompt has tokens: the pooled embedding, filled up with zeros."""

    clips: ClassVar[tuple[str, str]] = ("text_encoder", "text_encoder_2")
    other_prompts: ClassVar[tuple[str, ...]] = ("prompt_2",)
    """Arguments of the pipeline's `encode_prompt` for the further encoders; None repeats the prompt."""

    @property
    def pooled_width(self) -> int:
        """P, the width of the pooled embedding."""
        raise NotImplementedError

    def pooled(self, prompts: Tensor) -> Tensor:
        """(N, P) of embeddings (N, L + 1, D)."""
        return prompts[:, -1, : self.pooled_width]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        chunks = []
        for start in range(0, len(prompts), 32):
            tokens, _, pooled, _ = self.pipeline.encode_prompt(
                list(prompts[start : start + 32]),
                **dict.fromkeys(self.other_prompts),
                device=self.device,
                do_classifier_free_guidance=False,
            )
            chunks.append(packed(tokens, pooled))
        return torch.cat(chunks)

    def prompt_tokens(self, prompts: Tensor) -> dict[str, list[Tensor]]:
        return super().prompt_tokens(prompts[:, :-1])

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

    def _given(self, prompts: Sequence[str] | Tensor) -> dict[str, Any]:
        if not isinstance(prompts, Tensor):
            return super()._given(prompts)
        return {"prompt_embeds": prompts[:, :-1], "pooled_prompt_embeds": self.pooled(prompts)}


def packed(tokens: Tensor, pooled: Tensor) -> Tensor:
    """(N, L, D) and (N, P) as (N, L + 1, D)."""
    return torch.cat([tokens, F.pad(pooled, (0, tokens.shape[2] - pooled.shape[1]))[:, None]], dim=1)
