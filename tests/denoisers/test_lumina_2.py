"""Lumina-Image 2.0 on a tiny random base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import Lumina2Pipeline
from diffusers.loaders.single_file_utils import convert_lumina2_to_diffusers
from tiny_transformers import tiny_lumina_2_pipeline
from torch import Tensor
from transformer_family import (
    Case,
    draws_as_the_pipeline,
    encodes_by_files_of_its_own,
    goes_through_every_verb,
    has_the_loss_of,
    merges_a_single_file,
    merges_in_8_bits,
    packed_bases_are_refused,
    slots_are_words,
    trains_on_a_network_of_its_own,
)

FAMILY, PIPELINE = "lumina_2", tiny_lumina_2_pipeline


def to_diffusers(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' translation, which takes the published size's rows of queries and keys for granted."""
    split: dict[str, Tensor] = {}
    for name, tensor in checkpoint.items():
        if name.endswith("attention.qkv.weight"):
            parts = tensor.split([3 * len(tensor) // 5, len(tensor) // 5, len(tensor) // 5])
            split |= {name.replace("qkv", to): part for to, part in zip(("to_q", "to_k", "to_v"), parts, strict=True)}
        else:
            split[name] = tensor
    return convert_lumina2_to_diffusers(split)


CASE = Case(
    family=FAMILY,
    pipeline=Lumina2Pipeline,
    latents=4,
    license="apache-2.0",
    fused="lora_unet_layers_0_attention_qkv",
    to_diffusers=to_diffusers,
)


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


def test_slots_are_words_of_gemma(denoiser: Any) -> None:
    slots_are_words(denoiser)


def test_every_verb(base: Any, recipe: Any, cli: Any, tmp_path: Any) -> None:
    goes_through_every_verb(CASE, base, recipe, cli, tmp_path)


def test_a_single_file_with_fused_weights(base: Any, cli: Any, tmp_path: Any) -> None:
    merges_a_single_file(CASE, base, cli, tmp_path)


def test_merges_in_8_bits(base: Any, cli: Any, tmp_path: Any) -> None:
    merges_in_8_bits(CASE, base, cli, tmp_path)


def test_packed_bases_are_refused(base: Any, cli: Any, tmp_path: Any) -> None:
    packed_bases_are_refused(CASE, base, cli, tmp_path)


def test_a_network_of_its_own(base: Any, recipe: Any, cli: Any, tmp_path: Any) -> None:
    trains_on_a_network_of_its_own(CASE, base, recipe, cli, tmp_path)


def test_text_encoders_of_their_own(base: Any, recipe: Any, cli: Any, tmp_path: Any) -> None:
    encodes_by_files_of_its_own(CASE, base, recipe, cli, tmp_path)
