"""The embedded model, and the main job on it from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import Cli
from PIL import Image

from erasediff_lora import demo
from erasediff_lora.data.prompts import balanced, expand
from erasediff_lora.evaluation.judges.classifier import Classifier
from erasediff_lora.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent
MEGABYTE = 1e6


def test_model_fits_the_package_and_states_its_measures() -> None:
    files = [file for file in demo.MODEL_DIR.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20 * MEGABYTE
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".ckpt"}]
    measured = json.loads((demo.MODEL_DIR / "measured.json").read_text())
    assert measured["judge_concept"] >= 0.95 and measured["judge_style"] >= 0.95
    assert set(measured["by_concept"]) == set(demo.CONCEPTS) and min(measured["by_concept"].values()) >= 0.90
    assert set(measured["by_style"]) == set(demo.STYLES) and min(measured["by_style"].values()) >= 0.85
    assert (demo.MODEL_DIR / "contact_sheet.webp").is_file()
    assert "CC-BY-4.0" in (demo.MODEL_DIR / "README.md").read_text()


def test_plain_diffusers_loads_it_and_the_judge_recognises_its_pictures() -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(demo.MODEL_DIR, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    sampling = Recipe.load(ROOT / "recipes/demo_concept.yaml").sampling
    prompts = balanced(expand([demo.TEMPLATE], demo.CONCEPTS, {"style": demo.STYLES}), 60, seed=0)
    images = pipeline(
        [prompt.text for prompt in prompts],
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in range(60)],
    ).images
    named = Classifier.load(demo.JUDGE_FILE).classify(images)
    right = [concept == prompt.concept for (concept, _), prompt in zip(named, prompts, strict=True)]
    assert sum(right) >= 54


def test_demo_recipes_differ_in_what_they_erase_only() -> None:
    packaged = yaml.safe_load((ROOT / "erasediff_lora/demo/recipe.yaml").read_text())
    for name in ("demo_concept", "demo_style"):
        values = yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text())
        for section in packaged.keys() - {"forget", "retain", "output"}:
            one, other = (
                {key: value for key, value in recipe[section].items() if key not in ("attacks", "paraphrases")}
                for recipe in (values, packaged)
            )
            assert one == other, (name, section)


def invert(cli: Cli, run: Path, cache: Path) -> dict[str, Any]:
    """Success of one restart of concept inversion, by model."""
    result = cli(
        "evaluate", run, "--name", "inverted", "--cache", cache,
        "--evaluation.metrics", "[]", "--evaluation.attacks", "[inversion]",
        "--evaluation.inversion.restarts", "1",
        "--evaluation.forget_samples", "30", "--evaluation.retain_samples", "30",
    )  # fmt: skip
    assert result.status == 0, result.err
    (made,) = run.glob("evaluations/*-inverted/evaluation.json")
    models = json.loads(made.read_text())["attacks"]["inversion"]["models"]
    return {name: model["success"] for name, model in models.items()}


# As docs/measurements.md has it: a third of the time.
FASTER = ("--training.steps", "80", "--training.learning_rate", "0.01", "--training.lr_schedule", "cosine",
          "--objective.eta", "1")  # fmt: skip


@pytest.mark.parametrize("concept", ["cat", "blueprint"])
def test_the_demo_erases_a_concept_and_keeps_the_rest(cli: Cli, tmp_path: Path, concept: str) -> None:
    result = cli(
        "demo", "--concept", concept, "--output", tmp_path / "run", "--cache", tmp_path / "cache",
        "--evaluation.forget_samples", "80", "--evaluation.retain_samples", "60",
        "--evaluation.paraphrases.samples", "12", *FASTER,
    )  # fmt: skip
    assert result.status == 0, result.err
    run = tmp_path / "run"
    numbers = json.loads((run / "evaluation.json").read_text())
    assert numbers["concepts"] == [concept]
    accuracy = numbers["metrics"]["accuracy"]
    assert accuracy["unlearning_accuracy_base"] <= 0.15
    assert accuracy["unlearning_accuracy"] >= 0.90
    became = accuracy["per_concept"][concept]["became"]
    anchor = yaml.safe_load((run / "recipe.yaml").read_text())["forget"]["concepts"][0]["anchor"]
    assert next(iter(became)) == anchor and sum(became.values()) == pytest.approx(1)
    assert became.get(concept, 0) == pytest.approx(1 - accuracy["unlearning_accuracy"])
    assert accuracy["retain_accuracy"] >= accuracy["retain_accuracy_base"] - 0.05
    assert (run / "pytorch_lora_weights.safetensors").stat().st_size <= MEGABYTE
    assert Image.open(run / "before_after.png").width > 500
    for shown in ("erased     yes", "kept ", str(run / "before_after.png")):
        assert shown in result.out
    if concept == "cat":
        success = invert(cli, run, tmp_path / "cache")
        assert success["base"] >= 0.9, "the attack finds the concept where it is"
        assert success["erased"] <= success["base"]
