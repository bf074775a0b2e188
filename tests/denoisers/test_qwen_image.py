"""Qwen-Image on a tiny random base, with prompts of different lengths and an autoencoder for films."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from tiny_transformers import tiny_qwen_image_pipeline
from torch import Tensor
from transformer_family import CASES, draws_as_the_pipeline, has_the_loss_of

FAMILY, PIPELINE = "qwen_image", tiny_qwen_image_pipeline
CASE = CASES[FAMILY]


def pack(latents: Tensor) -> Tensor:
    """The pipeline's own packing."""
    return QwenImagePipeline._pack_latents(latents, *latents.shape)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_a_loop_over_predict_draws_the_pipelines_pictures(denoiser: Any, guidance: float, size: Any) -> None:
    draws_as_the_pipeline(CASE, denoiser, guidance, size, pack)


def test_the_loss_is_that_of_diffusers_example(denoiser: Any) -> None:
    """`train_dreambooth_lora_qwen_image.py`, a step of it restated with the pipeline's functions for packing."""
    pipe = denoiser.pipeline

    def predicted(noisy: Tensor, sigmas: Tensor) -> Tensor:
        tokens, mask = pipe.encode_prompt(["a photo of a cat", "a dog"], max_sequence_length=512)
        found = pipe.transformer(
            hidden_states=pack(noisy),
            encoder_hidden_states=tokens,
            encoder_hidden_states_mask=mask,
            timestep=sigmas,
            img_shapes=[(1, 4, 2)] * 2,
            return_dict=False,
        )[0]
        return QwenImagePipeline._unpack_latents(found, 64, 32, 8)[:, :, 0]

    has_the_loss_of(CASE, denoiser, predicted)


def test_pictures_are_encoded_and_decoded_as_the_pipeline_does(denoiser: Any) -> None:
    vae = denoiser.pipeline.vae
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = denoiser.encode_images(pixels)
    assert latents.shape == (2, 4, 4, 4)
    with torch.no_grad():
        raw = vae.encode(pixels[:, :, None]).latent_dist.mode()
        shown = vae.decode(raw).sample[:, :, 0]
    mean, deviation = (torch.tensor(v).view(1, 4, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(latents * deviation + mean, raw[:, :, 0])
    plain = denoiser.pipeline.image_processor.postprocess(shown, output_type="pil")
    again = denoiser.decode(latents)
    for one, other in zip(plain, again, strict=True):
        difference = np.asarray(one, dtype=int) - np.asarray(other, dtype=int)
        assert one.size == (32, 32) and np.abs(difference).max() <= 1
