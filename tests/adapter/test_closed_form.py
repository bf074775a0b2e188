"""The closed form against least squares, and what an adapter that starts from it does to the network."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file
from tiny import tiny_class_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

from erasediff_lora import denoisers
from erasediff_lora.adapter.closed_form import Translation, low_rank
from erasediff_lora.adapter.modules import lora_layers
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.closed_form_start import aligned, start_from_closed_form
from erasediff_lora.training.setup import adapt

FORGET = {
    "concepts": [{"name": "cat", "anchor": "dog"}, {"name": "cow", "anchor": "hen"}],
    "templates": ["a photo of a {concept}", "{concept}s at night"],
}
RETAIN = {"concepts": ["dog", "hen"], "templates": ["a photo of a {concept}", "the sea"]}
UCE = {"name": "uce"}


def least_squares(weight: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray, float]], ridge: float) -> np.ndarray:
    """The W' that solves all of them at once: rows that weigh, what they should become, and W for itself."""
    width = weight.shape[1]
    rows = [np.sqrt(w) * tokens for tokens, _, w in parts] + [np.sqrt(ridge) * np.eye(width)]
    goals = [np.sqrt(w) * to @ weight.T for _, to, w in parts] + [np.sqrt(ridge) * weight.T]
    return np.linalg.lstsq(np.vstack(rows), np.vstack(goals), rcond=None)[0].T


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_least_squares_solution(seed: int) -> None:
    g = np.random.default_rng(seed)
    tokens, to, kept, weight = (g.normal(size=size) for size in ((7, 12), (7, 12), (20, 12), (5, 12)))
    preserve, ridge = 0.4, 0.03
    translation = Translation(12, preserve, ridge)
    for part in (slice(0, 3), slice(3, 7)):
        translation.move(torch.from_numpy(tokens[part]), torch.from_numpy(to[part]))
    translation.keep(torch.from_numpy(kept))
    expected = least_squares(weight, [(tokens, to, 1.0), (kept, kept, preserve)], ridge) - weight
    np.testing.assert_allclose(weight @ translation.solve().numpy(), expected, atol=1e-10)


@pytest.mark.parametrize(("rank", "own"), [(3, 8), (8, 8), (8, 2)])
def test_its_low_rank_part_is_the_nearest(rank: int, own: int) -> None:
    g = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(*size, generator=g, dtype=torch.float64) for size in ((10, own), (own, 8)))
    change = left @ right
    part = low_rank(change, rank)
    u, s, v = np.linalg.svd(change.numpy())
    np.testing.assert_allclose((part.up @ part.down).numpy(), (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-9)
    assert part.kept == pytest.approx(float((s[:rank] ** 2).sum() / (s**2).sum()))
    assert len(part.down) == min(rank, own)
    torch.testing.assert_close(part.down.norm(dim=1), part.up.norm(dim=0))


def test_names_of_different_length_are_laid_beside_each_other() -> None:
    """The last token of a name knows it whole, and what stands behind it follows."""
    short, long = ["<s>", "a", "cat", "at", "night"], ["<s>", "a", "red", "old", "dog", "at", "night"]
    assert aligned(short, long, 9) == [0, 1, 4, 5, 6, 7, 8, 8, 8]
    assert aligned(long, short, 9) == [0, 1, 2, 2, 2, 3, 4, 5, 6]
    assert aligned(short, short, 9) == list(range(9))
    assert aligned(["<s>", "cat"], ["<s>"], 4) == [0, 1, 1, 2]
    assert aligned(["<s>", "cat"], ["<s>", "dog"], 1) == [0], "a pooled embedding's one place"


def recipe_of(file: Path) -> tuple[Recipe, Any, Any]:
    recipe = Recipe.load(file)
    denoiser = denoisers.load(recipe.model)
    return recipe, denoiser, adapt(recipe, denoiser)


def token_rows(pipe: Any, texts: list[str]) -> np.ndarray:
    """What transformers' own encoder makes of the prompts, a row a token."""
    ids = pipe.tokenizer(texts, padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0].flatten(0, 1).double().numpy()


@pytest.mark.parametrize("dora", [False, True])
def test_the_layers_change_as_the_tokens_of_the_prompts_say(dora: bool, recipe_file: RecipeFile) -> None:
    """Restated from transformers' own encoder: every prompt's rows, the anchor's beside them, the retain prompts'."""
    adapter = {"targets": "cross_attention", "rank": 32, "alpha": 8.0, "dora": dora}
    adapter |= {"start": "closed_form", "start_preserve": 0.5, "start_ridge": 0.2}
    # Names of one letter are one token in the tiny vocabulary, so that rows correspond as they stand.
    forget = {"concepts": [{"name": "x", "anchor": "y"}], "templates": ["a photo of a {concept}", "{concept} at sea"]}
    retain = {"concepts": ["y", "z"], "templates": ["a photo of a {concept}", "the sea"]}
    file = recipe_file(forget=forget, retain=retain, adapter=adapter, objective={"target": "anchor"})
    recipe, denoiser, trainable = recipe_of(file)
    start_from_closed_form(recipe, denoiser, trainable)
    rows = partial(token_rows, denoiser.pipeline)
    moved, to = rows(["a photo of a x", "x at sea"]), rows(["a photo of a y", "y at sea"])
    kept = rows(["", "a photo of a y", "a photo of a z", "the sea"])
    paths = list(lora_layers(denoiser.network))
    changes = dict(zip(paths, trainable.weight_changes(), strict=True))
    weights = dict(zip(paths, trainable.base_weights, strict=True))
    assert any(path.endswith("to_k") for path in changes)
    for path, change in changes.items():
        weight = weights[path].detach().double().numpy()
        if not path.endswith(("attn2.to_k", "attn2.to_v")):
            torch.testing.assert_close(change.detach(), torch.zeros_like(change), atol=1e-6, rtol=0)
            continue
        expected = least_squares(weight, [(moved, to, 1.0), (kept, kept, 0.5)], 0.2) - weight
        np.testing.assert_allclose(change.detach().numpy(), expected, atol=2e-4 * np.abs(expected).max())
        assert np.abs(expected).max() > 0.01


def authors_rounds(
    weights: list[np.ndarray], moved: np.ndarray, to: np.ndarray, kept: np.ndarray, ridges: tuple[float, float]
) -> list[np.ndarray]:
    """RECE as its authors' code goes about it: the layers themselves are edited, round by round, all on the original's
    account (`close_form_emb_regzero`, `edit_model_adversarial`); here the preserved weigh 0.5, the layers' own 0.2."""
    ridge, search_ridge = ridges
    now = [weight.copy() for weight in weights]
    tokens = moved
    for turn in range(3):
        if turn:
            square = search_ridge * np.eye(weights[0].shape[1]) + sum(weight.T @ weight for weight in now)
            mixed = sum(new.T @ old for new, old in zip(now, weights, strict=True))
            tokens = moved @ (np.linalg.inv(square) @ mixed).T
        inner = ridge * np.eye(len(weights[0].T)) + tokens.T @ tokens + 0.5 * kept.T @ kept
        now = [(ridge * w + (to @ w.T).T @ tokens + 0.5 * (kept @ w.T).T @ kept) @ np.linalg.inv(inner) for w in now]
    return [new - old for new, old in zip(now, weights, strict=True)]


def test_rounds_of_search_and_change_are_those_of_rece(recipe_file: RecipeFile) -> None:
    adapter = {"rank": 32, "start_preserve": 0.5, "start_ridge": 0.2}
    forget = {"concepts": [{"name": "x", "anchor": "y"}], "templates": ["a photo of a {concept}"]}
    retain = {"concepts": ["z"], "templates": ["a photo of a {concept}"]}
    objective = {"name": "rece", "rounds": 2, "search_ridge": 0.05}
    file = recipe_file(forget=forget, retain=retain, adapter=adapter, objective=objective)
    recipe = Recipe.load(file)
    denoiser = denoisers.load(recipe.model)
    targeted = {"adapter": recipe.adapter.model_copy(update={"targets": "text"})}
    trainable = adapt(recipe.model_copy(update=targeted), denoiser)
    start_from_closed_form(recipe, denoiser, trainable)
    rows = partial(token_rows, denoiser.pipeline)
    moved, to, kept = rows(["a photo of a x"]), rows(["a photo of a y"]), rows(["", "a photo of a z"])
    weights = [weight.detach().double().numpy() for weight in trainable.base_weights]
    expected = authors_rounds(weights, moved, to, kept, (0.2, 0.05))
    for change, wanted in zip(trainable.weight_changes(), expected, strict=True):
        np.testing.assert_allclose(change.detach().numpy(), wanted, atol=2e-4 * np.abs(wanted).max())
    once = least_squares(weights[0], [(moved, to, 1.0), (kept, kept, 0.5)], 0.2) - weights[0]
    assert np.abs(expected[0] - once).max() > 0.05 * np.abs(once).max(), "the rounds change more"


@pytest.mark.parametrize(
    ("family", "pipeline", "layers"),
    [
        ("stable_diffusion", None, 8),
        ("stable_diffusion_xl", tiny_xl_pipeline, 8),
        ("stable_diffusion_3", tiny_sd3_pipeline, 2),
    ],
)
def test_an_adapter_without_a_picture_or_a_step(
    family: str, pipeline: Callable[[], Any] | None, layers: int, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """Prompts of the concepts come to read like their anchors', the others hardly change; every format is written."""
    base = recipe_file().parent / "base"
    if pipeline is not None:
        pipeline().save_pretrained(base)
    model = {"family": family} | ({"base": str(base)} if pipeline else {})
    file = recipe_file(model=model, forget=FORGET, retain=RETAIN, objective=UCE, adapter={"rank": 64})
    result = cli("train", file)
    assert result.status == 0, result.err
    run = tmp_path / "run"
    assert not list((tmp_path / "cache").glob("*et-*")), "neither set"
    assert not (run / "training_log.jsonl").exists()
    assert f"the closed form is in {layers} layers" in result.err
    tensors = load_file(run / "adapter_model.safetensors")
    assert len(tensors) == 2 * layers
    assert {"pytorch_lora_weights.safetensors", "recipe.yaml", "report.html"} <= {path.name for path in run.iterdir()}

    _, denoiser, trainable = recipe_of(file)
    trainable.load_state(tensors)

    def tokens(pattern: str, texts: list[str]) -> np.ndarray:
        read = denoiser.prompt_tokens(denoiser.encode_prompts(texts))[pattern]
        return torch.cat(read, dim=1).flatten(0, 1).double().numpy()

    changes = zip(lora_layers(denoiser.network), trainable.base_weights, trainable.weight_changes(), strict=True)
    for path, weight, change in changes:
        (pattern,) = (one for one in denoiser.target_presets["text"] if re.fullmatch(one, path))
        names = [tokens(pattern, [f"a photo of a {one}", f"{one}s at night"]) for one in ("cat", "dog", "cow", "hen")]
        kept = tokens(pattern, ["", "a photo of a dog", "a photo of a hen", "the sea"])
        parts = [(names[0], names[1], 1.0), (names[2], names[3], 1.0), (kept, kept, 1.0)]
        old = weight.double().numpy()
        expected = least_squares(old, parts, 0.1) - old
        np.testing.assert_allclose(change.detach().numpy(), expected, atol=1e-3 * np.abs(expected).max())


def test_diffusers_draws_with_it_what_the_trainer_would(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file(forget=FORGET, retain=RETAIN, objective=UCE, adapter={"rank": 16})
    assert cli("train", file).status == 0
    recipe, denoiser, trainable = recipe_of(file)
    trainable.load_state(load_file(tmp_path / "run/adapter_model.safetensors"))
    pipe = StableDiffusionPipeline.from_pretrained(recipe.model.base, safety_checker=None)
    pipe.load_lora_weights(tmp_path / "run", weight_name="pytorch_lora_weights.safetensors")
    noisy, timesteps = torch.randn(2, 4, 4, 4), torch.tensor([10, 900])
    prompts = denoiser.encode_prompts(["a photo of a cat", "the sea"])
    with torch.no_grad():
        ours, theirs = denoiser.predict(noisy, timesteps, prompts), pipe.unet(noisy, timesteps, prompts.tokens).sample
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("adapter", [{"rank": 3}, {"rank": 3, "dora": True}, "none"])
def test_training_goes_on_from_it_and_resumes_to_the_bit(
    adapter: Any, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    chosen = {"kind": adapter} if isinstance(adapter, str) else adapter
    file = recipe_file(forget=FORGET, retain=RETAIN)
    values = yaml.safe_load(file.read_text())
    values["adapter"] = {"targets": "attention", "start": "closed_form", **chosen}
    file.write_text(yaml.safe_dump(values))
    assert cli("train", file).status == 0
    whole = _weights(tmp_path / "run")
    assert cli("train", file, "--output", tmp_path / "cut", "--training.steps", "2").status == 0
    assert cli("train", file, "--output", tmp_path / "cut", "--resume").status == 0
    assert all(torch.equal(value, _weights(tmp_path / "cut")[name]) for name, value in whole.items())
    assert cli("train", file, "--output", tmp_path / "start", "--training.steps", "0").status == 0
    start = _weights(tmp_path / "start")
    moved = max(float((value - start[name]).abs().max()) for name, value in whole.items())
    assert 0 < moved < 0.05, "four small steps away"


def _weights(run: Path) -> dict[str, torch.Tensor]:
    file = run / "adapter_model.safetensors"
    return load_file(file if file.exists() else run / "unet/diffusion_pytorch_model.safetensors")


def test_what_has_no_closed_form_is_refused(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    refused(
        cli("train", recipe_file(training={"steps": 0})),
        "training.steps = 0: leaves the base as it is. Take some, or set adapter.start: closed_form.",
    )
    self_attention = recipe_file(adapter={"start": "closed_form", "targets": [r".*attn1\.to_q"]})
    refused(
        cli("train", self_attention),
        "adapter.targets",
        "leaves out the layers that read the prompt",
        "adapter.start: zero",
    )
    assert (
        cli("train", recipe_file(objective=UCE | {"target": "random_anchor"}), "--output", tmp_path / "any").status == 0
    )
    assert cli("train", recipe_file(objective=UCE | {"target": "uncond"}), "--output", tmp_path / "none").status == 0
    tiny_class_pipeline({0: "cat", 1: "dog"}).save_pretrained(tmp_path / "classes")
    classes = {
        "model": {"base": str(tmp_path / "classes"), "family": "class_conditional"},
        "forget": {"concepts": [{"name": "cat", "anchor": "dog"}], "templates": ["{concept}"]},
        "retain": {"concepts": ["dog"], "templates": ["{concept}"]},
    }
    alone, start = recipe_file(**classes, objective=UCE), {"start": "closed_form"}
    refused(cli("train", alone, "--overwrite"), "objective.name = 'uce'", "this model is told a class")
    refused(
        cli("train", recipe_file(**classes, adapter=start), "--overwrite"),
        "adapter.start = 'closed_form'",
        "this model is told a class",
    )


def test_plan_and_prepare_know_that_there_are_no_steps(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file(forget=FORGET, retain=RETAIN, objective=UCE)
    planned = cli("plan", file)
    assert planned.status == 0 and "start" in planned.out and "draw" not in planned.out
    assert "nothing to prepare" in cli("prepare", file).out
    assert not (tmp_path / "run").exists()


def test_more_concepts_than_pictures(recipe_file: RecipeFile, cli: Cli) -> None:
    """No picture is drawn, so that none can be missing."""
    forget = {"concepts": [{"name": f"thing {n}", "anchor": "dog"} for n in range(9)], "count": 1}
    assert cli("train", recipe_file(forget=forget, objective=UCE)).status == 0
    refused(cli("train", recipe_file(forget=forget), "--overwrite"), "forget.count = 1")


def test_a_small_rank_is_said_to_cut_it(recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(forget=FORGET, retain=RETAIN, objective=UCE, adapter={"rank": 1})
    assert "it is cut by adapter.rank" in cli("train", file).err
