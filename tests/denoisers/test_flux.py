"""FLUX.1 on tiny random bases, with and without embedded guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from tiny_transformers import tiny_flux_pipeline
from torch import Tensor
from transformer_family import CASES, draws_as_the_pipeline, has_the_loss_of

FAMILY, PIPELINE = "flux", tiny_flux_pipeline
CASE = CASES[FAMILY]


def pack(latents: Tensor) -> Tensor:
    """The pipeline's own packing."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_a_loop_over_predict_draws_the_pipelines_pictures(denoiser: Any, guidance: float, size: Any) -> None:
    draws_as_the_pipeline(CASE, denoiser, guidance, size, pack)


def test_the_loss_is_that_of_diffusers_example(denoiser: Any) -> None:
    """`train_dreambooth_lora_flux.py`, a step of it restated with the pipeline's functions for packing and places."""
    pipe = denoiser.pipeline

    def predicted(noisy: Tensor, sigmas: Tensor) -> Tensor:
        tokens, pooled, text_ids = pipe.encode_prompt(["a photo of a cat", "a dog"], None, max_sequence_length=512)
        found = pipe.transformer(
            hidden_states=pack(noisy),
            timestep=sigmas,
            guidance=torch.tensor([3.5]).expand(2),
            pooled_projections=pooled,
            encoder_hidden_states=tokens,
            txt_ids=text_ids,
            img_ids=FluxPipeline._prepare_latent_image_ids(2, 4, 2, "cpu", torch.float32),
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(found, height=64, width=32, vae_scale_factor=8)

    has_the_loss_of(CASE, denoiser, predicted)


def test_schnell_is_told_no_guidance(tmp_path: Any) -> None:
    from erasediff_lora import denoisers
    from erasediff_lora.recipe import Model

    tiny_flux_pipeline(guidance=False).save_pretrained(tmp_path / "schnell")
    denoiser = denoisers.load(Model(base=str(tmp_path / "schnell"), family=FAMILY))
    assert denoiser.architecture == "flux-1-schnell"
    draws_as_the_pipeline(CASE, denoiser, 0.0, (32, 32), pack)
    assert denoiser.encode_prompts(["a cat"]).tokens.shape[1] == 256
