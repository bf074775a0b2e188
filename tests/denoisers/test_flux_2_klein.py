"""FLUX.2 klein on tiny random bases, distilled and not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from tiny_transformers import tiny_flux_2_klein_pipeline
from torch import Tensor
from transformer_family import CASES, draws_as_the_pipeline, has_the_loss_of

from erasediff_lora import denoisers
from erasediff_lora.recipe import Model

FAMILY, PIPELINE = "flux_2_klein", tiny_flux_2_klein_pipeline
CASE = CASES[FAMILY]


def handed_out(denoiser: Any) -> Any:
    """What the pipeline makes of latents at the end."""
    vae = denoiser.pipeline.vae
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return lambda latents: Flux2KleinPipeline._unpatchify_latents(latents * deviation + mean)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_a_loop_over_predict_draws_the_pipelines_pictures(denoiser: Any, guidance: float, size: Any) -> None:
    draws_as_the_pipeline(CASE, denoiser, guidance, size, lambda latents: latents, handed_out(denoiser))


def test_the_distilled_one_takes_no_guidance(tmp_path: Any) -> None:
    tiny_flux_2_klein_pipeline(distilled=True).save_pretrained(tmp_path / "base")
    denoiser = denoisers.load(Model(base=str(tmp_path / "base"), family=FAMILY))
    assert denoiser.rows_drawn(4.0) == 1
    draws_as_the_pipeline(CASE, denoiser, 4.0, (32, 32), lambda latents: latents, handed_out(denoiser))


def test_the_loss_is_that_of_diffusers_example(denoiser: Any) -> None:
    """`train_dreambooth_lora_flux2_klein.py`, a step of it restated with the pipeline's functions for packing."""
    pipe = denoiser.pipeline

    def predicted(noisy: Tensor, sigmas: Tensor) -> Tensor:
        tokens, text_ids = pipe.encode_prompt(["a photo of a cat", "a dog"], max_sequence_length=512)
        ids = Flux2KleinPipeline._prepare_latent_ids(noisy)
        found = pipe.transformer(
            hidden_states=Flux2KleinPipeline._pack_latents(noisy),
            timestep=sigmas,
            guidance=None,
            encoder_hidden_states=tokens,
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
        )[0]
        return Flux2KleinPipeline._unpack_latents_with_ids(found, ids)

    has_the_loss_of(CASE, denoiser, predicted)


def test_pictures_survive_the_batch_norm(denoiser: Any) -> None:
    vae = denoiser.pipeline.vae
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = denoiser.encode_images(pixels)
    assert latents.shape == (2, 16, 2, 2)
    with torch.no_grad():
        raw = vae.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(handed_out(denoiser)(latents), raw)
        torch.testing.assert_close(denoiser.decode_with(vae, latents), vae.decode(raw).sample, atol=1e-4, rtol=1e-4)
