"""Runs without a number of steps: they end when the forget losses say that the concepts are gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file

from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.until_gone import HELD_OUT, hold_out

FORGET = {
    "concepts": [{"name": "cat", "anchor": "dog"}, {"name": "car", "anchor": "dog"}],
    "templates": ["a photo of a {concept}"],
    "count": 24,
}
RETAIN = {"concepts": ["dog"], "templates": ["a photo of a {concept}"]}
AUTO = {"steps": "auto", "max_steps": 30, "batch_size": 8, "checkpoint_every": 10}


def recipe_of(recipe_file: RecipeFile, **training: Any) -> Path:
    adapter = {"rank": 8, "start": "closed_form"}
    objective = {"target": "anchor"}
    return recipe_file(forget=FORGET, retain=RETAIN, adapter=adapter, objective=objective, training=AUTO | training)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]


def test_it_ends_when_every_concept_is_gone_and_not_before(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """What is left is measured anew, from the adapter that was written, on other noise."""
    result = cli("train", recipe_of(recipe_file, gone=0.9))
    assert result.status == 0 and "every concept is gone after 10 steps: cat" in result.err
    rows = log_of(tmp_path / "run")
    assert len(rows) == 10
    assert rows[-1]["left/cat"] <= 0.9 and rows[-1]["left/car"] <= 0.9 and "left/cat" not in rows[5]


def test_what_is_left_is_the_forget_loss_over_the_bases(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_of(recipe_file, gone=0.0001, max_steps=10)
    assert cli("train", file).status == 0
    told = log_of(tmp_path / "run")[-1]["left/cat"]
    recipe = Recipe.load(file)
    denoiser = denoisers.load(recipe.model)
    pipe, forget = denoiser.pipeline, sets.prepare(recipe, denoiser, "forget")
    _, held = hold_out(forget)
    latents = held.latents[held.concepts == 0]
    padded = {"padding": "max_length", "max_length": 32, "return_tensors": "pt"}
    ids = [pipe.tokenizer(f"a photo of a {name}", **padded).input_ids for name in ("cat", "dog")]
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        concept, anchor = (pipe.text_encoder(one)[0] for one in ids)
        count = 256
        clean = latents[torch.randint(len(latents), (count,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, 1000, (count,), generator=generator)
        noisy = denoiser.noise_scheduler.add_noise(clean, noise, timesteps)
        target = pipe.unet(noisy, timesteps, anchor.expand(count, -1, -1)).sample
        before = (pipe.unet(noisy, timesteps, concept.expand(count, -1, -1)).sample - target).square().mean()
        pipe.load_lora_weights(tmp_path / "run", weight_name="pytorch_lora_weights.safetensors")
        after = (pipe.unet(noisy, timesteps, concept.expand(count, -1, -1)).sample - target).square().mean()
    assert float(after / before) == pytest.approx(told, rel=0.3)


def test_what_does_not_go_is_named_with_the_likely_cause(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    result = cli("train", recipe_of(recipe_file, gone=0.0001, max_steps=10, learning_rate=1e-9))
    assert result.status == 0
    assert "cat is not gone after 10 steps" in result.err and "of the base's forget loss is left" in result.err
    assert len(log_of(tmp_path / "run")) == 10


def test_a_run_stopped_on_the_way_ends_like_the_whole(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file, cut = recipe_of(recipe_file, gone=0.0001, max_steps=20), ("--output", tmp_path / "cut")
    assert cli("train", file).status == 0
    assert cli("train", file, *cut, "--training.max_steps", "10").status == 0
    assert cli("train", file, *cut, "--resume").status == 0
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert cli("train", file, *cut, "--training.gone", "0.9", "--resume").status == 0, "nothing is left to do"
    assert all(torch.equal(one[key], load_file(tmp_path / "cut/adapter_model.safetensors")[key]) for key in one)


def test_what_is_measured_on_is_not_trained_on(recipe_file: RecipeFile) -> None:
    recipe = Recipe.load(recipe_of(recipe_file))
    denoiser = denoisers.load(recipe.model)
    whole = sets.prepare(recipe, denoiser, "forget")
    kept, held = hold_out(whole)
    assert (len(kept.latents), len(held.latents)) == (24 - 2 * 3, 2 * 3)
    assert HELD_OUT >= 3 and held.concepts.bincount().tolist() == [3, 3]
    rows = {tuple(one.flatten().tolist()) for one in held.latents[:]}
    assert len(rows) == 6 and not any(tuple(one.flatten().tolist()) in rows for one in kept.latents[:])
    only = whole.select(torch.tensor([0, 1]))
    assert [len(part.latents) for part in hold_out(only)] == [2, 2], "a concept's only picture serves for both"


@pytest.mark.parametrize("name", ["finetune", "negative_gradient", "selective_amnesia"])
def test_methods_whose_forget_loss_does_not_fall_need_a_number(name: str, recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(forget=FORGET, retain=RETAIN, objective={"name": name}, training=AUTO)
    refused(cli("train", file), "training.steps = 'auto'", f"objective.name: {name} has not", "Give a number of steps.")


def test_without_a_last_step_there_is_no_mean_of_the_last(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("train", recipe_of(recipe_file, average=2)), "training.average = 2", "training.steps: auto")
    refused(cli("train", recipe_of(recipe_file, gone=1.5)), "training.gone = 1.5")
    refused(
        cli("train", recipe_of(recipe_file), "--training.steps", "many"),
        "training.steps = 'many': must be a valid integer, 0 or more, or auto",
    )
