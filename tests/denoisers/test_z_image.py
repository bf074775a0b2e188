"""Z-Image on a tiny random base, with prompts of different lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import tiny_z_image_pipeline
from transformer_family import CASES, draws_as_the_pipeline, has_the_loss_of

FAMILY, PIPELINE = "z_image", tiny_z_image_pipeline
CASE = CASES[FAMILY]


@pytest.mark.parametrize("guidance", [0.0, 4.0])
@pytest.mark.parametrize("size", [(32, 32), (64, 32)])
def test_a_loop_over_predict_draws_the_pipelines_pictures(denoiser: Any, guidance: float, size: Any) -> None:
    draws_as_the_pipeline(CASE, denoiser, guidance, size, lambda latents: latents)


def test_the_loss_is_that_of_diffusers_example(denoiser: Any) -> None:
    """`train_dreambooth_lora_z_image.py`, a step of it restated."""
    pipe = denoiser.pipeline

    def predicted(noisy: Any, sigmas: Any) -> Any:
        told, _ = pipe.encode_prompt(["a photo of a cat", "a dog"], do_classifier_free_guidance=False)
        found = pipe.transformer(list(noisy.unsqueeze(2).unbind(dim=0)), 1 - sigmas, told, return_dict=False)[0]
        return -torch.stack(found, dim=0).squeeze(2)

    has_the_loss_of(CASE, denoiser, predicted)


def test_prompts_of_different_lengths_do_not_disturb_each_other(denoiser: Any) -> None:
    noisy, steps = torch.randn(2, 4, 4, 4), torch.tensor([10, 700])
    told = denoiser.encode_prompts(["a cat", "a long prompt about a dog and its bone"])
    assert told.lengths[0] < told.lengths[1]
    both = denoiser.predict(noisy, steps, told)
    for row in range(2):
        alone = denoiser.predict(noisy[row : row + 1], steps[row : row + 1], told[row : row + 1].trimmed())
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=1e-4)
