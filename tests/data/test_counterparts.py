"""Counterparts of the forgotten pictures: what the base draws of the anchor from the same seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from fixtures import Cli, RecipeFile
from picture_folder import pictures
from PIL import Image
from torch import Tensor

from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.data.batches import BatchSampler
from erasediff_lora.data.noising import counterpart_shift, denoising_target
from erasediff_lora.denoisers.flow_matching import FlowMatching
from erasediff_lora.recipe import Recipe

GUIDED = {"target": "anchor", "picture_guidance": 0.5}


def scheduler(prediction_type: str) -> Any:
    if prediction_type == "flow":
        return FlowMatching(1000)
    return DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)


def picture_in(prediction: Tensor, noisy: Tensor, timesteps: Tensor, noise_scheduler: Any) -> tuple[Tensor, Tensor]:
    """x_0 that a prediction makes of x_t, and the noise's share of the variance."""
    if isinstance(noise_scheduler, FlowMatching):
        sigma = noise_scheduler.sigmas(timesteps)[:, None, None, None].double()
        return noisy - sigma * prediction, sigma**2 / (sigma**2 + (1 - sigma) ** 2)
    alphas = noise_scheduler.alphas_cumprod[timesteps][:, None, None, None].double()
    match noise_scheduler.config.prediction_type:
        case "epsilon":
            return (noisy - (1 - alphas).sqrt() * prediction) / alphas.sqrt(), 1 - alphas
        case "v_prediction":
            return alphas.sqrt() * noisy - (1 - alphas).sqrt() * prediction, 1 - alphas
        case _:
            return prediction, 1 - alphas


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_target_leads_from_the_picture_to_its_counterpart(prediction_type: str) -> None:
    """Under the same x_t, whatever the network predicts: by the square of the noise's share of the variance."""
    noise_scheduler = scheduler(prediction_type)
    timesteps = torch.tensor([5, 200, 500, 800, 999])
    generator = torch.Generator().manual_seed(0)
    latents, counterparts, noise = torch.randn(3, 5, 4, 3, 3, generator=generator, dtype=torch.float64)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    target = denoising_target(noise_scheduler, latents, noise, timesteps)
    shift = counterpart_shift(noise_scheduler, latents, counterparts, timesteps)
    before, _ = picture_in(target, noisy, timesteps, noise_scheduler)
    after, share = picture_in(target + shift, noisy, timesteps, noise_scheduler)
    torch.testing.assert_close(before, latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after - before, share**2 * (counterparts - latents), rtol=1e-4, atol=1e-4)
    assert float(share[0]) < 0.02 and float(share[-1]) > 0.99


def test_counterparts_are_drawn_from_the_same_seeds(recipe_file: RecipeFile) -> None:
    concepts = [{"name": "cat", "anchor": "dog"}, {"name": "rose", "anchor": "tulip"}]
    recipe = Recipe.load(recipe_file(forget={"concepts": concepts, "count": 6}, objective=GUIDED))
    denoiser = denoisers.load(recipe.model)
    made = sets.prepare(recipe, denoiser, "forget")
    read = sets.prepare(recipe, denoiser, "forget")
    assert made.counterparts is not None and read.counterparts is not None
    assert torch.equal(made.counterparts[:], read.counterparts[:]), "from the cache"
    texts = [made.prompts[row] for row in made.captions.tolist()]
    anchors = [text.replace("cat", "dog").replace("rose", "tulip") for text in texts]
    for prompts, latents in ((texts, made.latents[:]), (anchors, made.counterparts[:])):
        torch.testing.assert_close(denoiser.generate(prompts, range(6), recipe.sampling, output="latent"), latents)


def test_without_a_named_anchor_every_picture_has_one_of_the_retained(recipe_file: RecipeFile) -> None:
    retain = {"concepts": ["dog", "tulip", "tree"], "count": 6}
    recipe = Recipe.load(
        recipe_file(
            forget={"concepts": ["cat"], "count": 5}, retain=retain, objective=GUIDED | {"target": "random_anchor"}
        )
    )
    denoiser = denoisers.load(recipe.model)
    data = sets.prepare(recipe, denoiser, "forget")
    assert data.counterparts is not None and data.anchors.shape == (5, 1)
    texts = [data.prompts[row] for row in data.anchors.flatten().tolist()]
    assert texts == [f"a photo of a {name}" for name in ("dog", "tulip", "tree", "dog", "tulip")]
    drawn = denoiser.generate(texts, range(5), recipe.sampling, output="latent")
    torch.testing.assert_close(drawn, data.counterparts[:])


def test_counterparts_of_pictures_have_their_shapes(recipe_file: RecipeFile, tmp_path: Path) -> None:
    sizes = [(40, 24), (32, 32), (24, 40)]
    folder = pictures(tmp_path / "pictures", *sizes)
    images = {"folder": str(folder), "caption": "a photo of a cat", "aspect_buckets": True}
    concepts = [{"name": "cat", "anchor": "dog"}]
    recipe = Recipe.load(recipe_file(forget={"concepts": concepts, "images": images}, objective=GUIDED))
    denoiser = denoisers.load(recipe.model)
    data = {kind: sets.prepare(recipe, denoiser, kind) for kind in ("forget", "retain")}
    assert recipe.forget.count >= len(sizes)
    counterparts = data["forget"].counterparts[:]
    assert counterparts.shape == data["forget"].latents[:].shape
    for row, (height, width) in enumerate(data["forget"].shapes.tolist()):
        drawn = denoiser.generate(["a photo of a dog"], [row], recipe.sampling, output="latent", size=sizes[row])
        assert sizes[row] == (8 * width, 8 * height)
        torch.testing.assert_close(drawn[0], counterparts[row, :, :height, :width])
    sampler = BatchSampler.of(recipe, data["forget"], data["retain"], denoiser)
    for step in range(3):
        ((batch,), (retained,)) = sampler.draw(step)
        assert batch.extras["shift"].shape == batch.noisy.shape
        assert not retained.extras


def test_pictures_that_were_read_share_as_many_as_the_recipe_says(recipe_file: RecipeFile, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", *[(32, 32)] * 5)
    images = {"folder": str(folder), "caption": "a photo of a cat"}

    def made(count: int) -> Tensor:
        forget = {"concepts": [{"name": "cat", "anchor": "dog"}], "images": images, "count": count}
        recipe = Recipe.load(recipe_file(forget=forget, objective=GUIDED))
        counterparts = sets.prepare(recipe, denoisers.load(recipe.model), "forget").counterparts
        assert counterparts is not None and len(counterparts) == 5
        return counterparts[:]

    two, three = made(2), made(3)
    assert torch.equal(two[[0, 1, 0, 1, 0]], two) and not torch.equal(two[0], two[1])
    assert torch.equal(three[[0, 1, 2, 0, 1]], three), "not those of the cache"


def test_the_contact_sheet_shows_them(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    heights = []
    for number, objective in enumerate(({"target": "random_anchor"}, GUIDED | {"target": "random_anchor"})):
        assert cli("prepare", recipe_file(objective=objective, output=str(tmp_path / f"{number}"))).status == 0
        heights.append(Image.open(tmp_path / f"{number}" / "forget_set.png").height)
    assert heights[1] == 2 * heights[0], "a row of its own for every caption"


def test_nothing_is_drawn_where_nothing_asks_for_it(recipe_file: RecipeFile, cli: Cli) -> None:
    recipe = Recipe.load(recipe_file(objective={"target": "random_anchor"}))
    denoiser = denoisers.load(recipe.model)
    assert sets.prepare(recipe, denoiser, "forget").counterparts is None
    result = cli("train", recipe_file(objective=GUIDED | {"target": "uncond"}))
    assert result.status == 0, result.err
    assert "objective.picture_guidance is not used: it leads to an anchor" in result.err
