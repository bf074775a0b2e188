"""Pictures of several aspect ratios: what is kept of them, and batches of one shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Cli, RecipeFile
from picture_folder import pictures
from PIL import Image
from refusals import refused

from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.data.batches import BatchSampler
from erasediff_lora.data.buckets import bucket
from erasediff_lora.recipe import Recipe

WIDE, TALL, SQUARE = (80, 48), (48, 80), (64, 64)


@pytest.mark.parametrize("side", [512, 768, 1024])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.6, 0.75, 0.9, 1, 1.1, 1.5, 1.78, 2, 7])
def test_a_bucket_is_near_and_no_larger_than_the_square(side: int, ratio: float) -> None:
    width, height = bucket(round(1000 * ratio), 1000, side)
    assert width % 64 == height % 64 == 0
    assert 0.75 * side * side <= width * height <= side * side
    assert abs(np.log(width / height / min(max(ratio, 0.5), 2))) < 0.13
    assert bucket(1000, round(1000 * ratio), side) == (height, width)


def test_the_square_stays_the_square() -> None:
    assert {bucket(100, 100, side) for side in (512, 1024)} == {(512, 512), (1024, 1024)}


def images(folder: Path, caption: str) -> dict[str, Any]:
    return {"images": {"folder": str(folder), "caption": caption, "aspect_buckets": True}}


def test_latents_are_those_of_the_whole_picture(tiny_base: Path, recipe_file: RecipeFile, tmp_path: Path) -> None:
    """Pictures that fill their bucket lose nothing: encoded by diffusers, uncropped."""
    from diffusers import AutoencoderKL

    sizes = [(40, 24), (32, 32), (24, 40), (40, 24)]
    assert [bucket(*size, 32) for size in sizes] == sizes
    folder = pictures(tmp_path / "images", *sizes)
    recipe = Recipe.load(recipe_file(forget=images(folder, "a photo of a cat")))
    denoiser = denoisers.load(recipe.model)
    assert denoiser.resolution == 32
    for _ in ("made", "read from the cache"):
        data = sets.prepare(recipe, denoiser, "forget")
        vae = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae")
        for row in range(len(sizes)):
            pixels = np.array(Image.open(folder / f"{row}.png"))
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
            with torch.no_grad():
                expected = vae.encode(image).latent_dist.mean[0] * vae.config.scaling_factor
            height, width = data.shapes[row].tolist()
            torch.testing.assert_close(data.latents[:][row, :, :height, :width], expected)


def test_every_batch_is_of_one_shape_and_all_are_drawn(recipe_file: RecipeFile, tmp_path: Path) -> None:
    forget = pictures(tmp_path / "forget", WIDE, SQUARE, WIDE)
    retain = pictures(tmp_path / "retain", SQUARE, TALL, SQUARE, WIDE)
    recipe = Recipe.load(
        recipe_file(
            forget=images(forget, "a photo of a cat"),
            retain=images(retain, "a photo of a dog") | {"contrast": 0.5, "focus": 0.5},
            training={"batch_size": 4},
        )
    )
    denoiser = denoisers.load(recipe.model)
    data = {kind: sets.prepare(recipe, denoiser, kind) for kind in ("forget", "retain")}
    sampler = BatchSampler.of(recipe, data["forget"], data["retain"], denoiser)
    seen: dict[str, set[int]] = {"forget": set(), "retain": set()}
    for step in range(40):
        drawn = zip(
            ("forget", "retain"), sampler.draw(step, drift_weights=torch.tensor([1.0, 2.0, 3.0, 4.0])), strict=True
        )
        for kind, (batch,) in drawn:
            shape = tuple(batch.noisy.shape[2:])
            assert {tuple(data[kind].shapes[row].tolist()) for row in batch.rows} == {shape}
            seen[kind] |= set(batch.rows.tolist())
            if kind == "retain":
                fits = shape in {tuple(pair) for pair in data["forget"].shapes.tolist()}
                assert int(batch.contrasted.sum()) == (2 if fits else 0), "no forget picture is tall"
    assert seen == {"forget": {0, 1, 2}, "retain": {0, 1, 2, 3}}


@pytest.mark.parametrize("objective", ["erasediff", "selective_amnesia"])
def test_training_and_attacking_with_buckets(recipe_file: RecipeFile, cli: Cli, tmp_path: Path, objective: str) -> None:
    forget = pictures(tmp_path / "forget", WIDE, SQUARE, WIDE)
    retain = pictures(tmp_path / "retain", SQUARE, TALL, WIDE)
    recipe = recipe_file(
        forget=images(forget, "a photo of a cat") | {"concepts": [{"name": "cat", "anchor": "dog"}]},
        retain=images(retain, "a photo of a dog"),
        objective={"name": objective},
        adversary={"pool": 2, "refresh_every": 1, "steps": 1, "batch_size": 2},
        evaluation={"judge": None},
    )
    result = cli("train", recipe, "--preset", "robust", "--training.steps", 4)
    assert result.status == 0, result.err
    lines = (tmp_path / "run/training_log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["forget_loss"] for line in lines if "forget_loss" in line]
    assert len(losses) == 4
    assert np.isfinite(losses).all()


def test_an_anchor_without_a_picture_of_the_shape_is_refused_at_once(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    recipe = recipe_file(
        forget=images(pictures(tmp_path / "forget", WIDE), "a photo of a cat")
        | {"concepts": [{"name": "cat", "anchor": "dog"}]},
        retain=images(pictures(tmp_path / "retain", SQUARE), "a photo of a dog"),
        objective={"name": "selective_amnesia", "surrogate_pictures": "anchor"},
    )
    refused(
        cli("train", recipe),
        "retain = 'a photo of a dog': no picture of the retain set at 5:3 has this prompt, which names an anchor."
        " Add some, or set images.aspect_buckets: false for both sets.",
    )
