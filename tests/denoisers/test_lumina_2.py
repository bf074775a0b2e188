"""Lumina-Image 2.0 on a tiny random base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import tiny_lumina_2_pipeline
from torch import Tensor
from transformer_family import CASES, draws_as_the_pipeline, has_the_loss_of

FAMILY, PIPELINE = "lumina_2", tiny_lumina_2_pipeline
CASE = CASES[FAMILY]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_a_loop_over_predict_draws_the_pipelines_pictures(denoiser: Any, guidance: float, size: Any) -> None:
    draws_as_the_pipeline(CASE, denoiser, guidance, size, lambda latents: latents)


def test_the_loss_is_that_of_diffusers_example(denoiser: Any) -> None:
    """`train_dreambooth_lora_lumina2.py`, a step of it restated: it goes from the noise to the picture."""
    pipe = denoiser.pipeline

    def predicted(noisy: Tensor, sigmas: Tensor) -> Tensor:
        tokens, mask, _, _ = pipe.encode_prompt(["a photo of a cat", "a dog"], do_classifier_free_guidance=False)
        return -pipe.transformer(
            hidden_states=noisy,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            timestep=1 - sigmas,
            return_dict=False,
        )[0]

    has_the_loss_of(CASE, denoiser, predicted)


def test_an_empty_prompt_is_what_guidance_leads_away_from(denoiser: Any) -> None:
    _, _, tokens, mask = denoiser.pipeline.encode_prompt(["a cat"], negative_prompt=[""])
    empty = denoiser.encode_prompts([""])
    assert torch.equal(empty.tokens, tokens) and torch.equal(empty.mask, mask.bool())
    assert empty.lengths == [1], "the beginning of the text"


def test_prompts_are_told_apart_by_their_last_word(denoiser: Any) -> None:
    one, other, cut = denoiser.tokenize(["a cat", "a car", "word " * 99])
    assert one.ids != other.ids and not one.cut and cut.cut
    assert len(cut.ids[0]) == denoiser.text_tokens
