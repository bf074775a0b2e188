"""Baselines without training: safe latent diffusion against diffusers' own pipeline of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.deprecated.stable_diffusion_safe import SafetyConfig, StableDiffusionPipelineSafe
from fixtures import Cli, RecipeFile
from refusals import refused
from tiny import tiny_classifier, tiny_xl_pipeline

from erasediff_lora import denoisers
from erasediff_lora.denoisers.safe_latent import STRENGTHS, SafetyGuidance, safely
from erasediff_lora.recipe import Model, Sampling

CONCEPT = "cat, nudity"


@pytest.mark.parametrize("strength", list(STRENGTHS))
@pytest.mark.filterwarnings("ignore")
def test_it_draws_what_diffusers_pipeline_of_it_draws(strength: str, tiny_base: Path) -> None:
    plain = StableDiffusionPipeline.from_pretrained(tiny_base)
    parts = {name: part for name, part in plain.components.items() if name != "image_encoder"}
    safe = StableDiffusionPipelineSafe(**parts, requires_safety_checker=False)
    safe.safety_concept = CONCEPT
    safe.set_progress_bar_config(disable=True)
    wanted = safe(
        ["a cat", "a dog"],
        num_inference_steps=20,
        guidance_scale=7.5,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
        output_type="pil",
        **getattr(SafetyConfig, strength.upper()),
    ).images

    denoiser = denoisers.load(Model(base=str(tiny_base)))
    sampling = Sampling(steps=20, guidance=7.5)
    before = denoiser.generate(["a cat", "a dog"], [1, 2], sampling, output="pil")
    with safely(denoiser, CONCEPT, STRENGTHS[strength]):
        found = denoiser.generate(["a cat", "a dog"], [1, 2], sampling, output="pil")
    after = denoiser.generate(["a cat", "a dog"], [1, 2], sampling, output="pil")
    for own, theirs in zip(found, wanted, strict=True):
        pixels = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (own, theirs)]
        assert (pixels[0] - pixels[1]).abs().max() <= 1
    assert [one.tobytes() for one in before] == [one.tobytes() for one in after], "nothing is left behind"
    assert any(one.tobytes() != led.tobytes() for one, led in zip(before, found, strict=True))


def test_the_configurations_are_those_of_the_authors() -> None:
    for name, settings in STRENGTHS.items():
        theirs = getattr(SafetyConfig, name.upper())
        assert settings.warmup == theirs["sld_warmup_steps"] and settings.scale == theirs["sld_guidance_scale"]
        assert settings.threshold == theirs["sld_threshold"]
        momentum = theirs["sld_momentum_scale"], theirs["sld_mom_beta"]
        assert (settings.momentum, settings.momentum_decay) == momentum


def test_what_lies_beyond_the_threshold_is_left_alone() -> None:
    guidance = SafetyGuidance(STRENGTHS["max"])
    prompted, empty = torch.tensor([3.0, 0.0, 0.0]), torch.zeros(3)
    concept = torch.tensor([0.0, 2.0, 0.0])
    assert guidance(prompted, empty, concept).tolist() == [0.0, 2.0, 0.0]
    assert guidance(prompted, empty, concept).tolist() == pytest.approx([0.0, 2.0 + 0.5 * 0.3 * 2.0, 0.0])


def test_xl_is_led_away_too(tmp_path: Path) -> None:
    tiny_xl_pipeline().save_pretrained(tmp_path / "xl")
    denoiser = denoisers.load(Model(base=str(tmp_path / "xl"), family="stable_diffusion_xl"))
    sampling = Sampling(steps=3, guidance=7.5)
    (before,) = denoiser.generate(["a cat"], [1], sampling, output="pil")
    with safely(denoiser, CONCEPT, STRENGTHS["max"]):
        (found,) = denoiser.generate(["a cat"], [1], sampling, output="pil")
    assert before.tobytes() != found.tobytes()


def test_both_baselines_stand_in_report_and_comparison(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="cat")
    metrics = ["accuracy", "negative_prompt", "safe_latent_diffusion"]
    asked = {"judge": f"transformers:{judge}", "metrics": metrics, "safe_latent_diffusion": {"samples": 2}}
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    found = json.loads((tmp_path / "run/evaluation.json").read_text())["metrics"]["safe_latent_diffusion"]
    assert list(found["ways"]) == ["SLD-strong", "SLD-max"] and found["avoided"] == "cat"
    assert found["ways"]["SLD-max"]["unlearning_accuracy"] == 0.0, "the judge sees cats everywhere"
    report = (tmp_path / "run/report.html").read_text()
    assert "SLD-max" in report and "with negative prompt" in report
    told = cli("compare", tmp_path / "run", "--output", tmp_path / "c.html")
    assert "the base with safe latent diffusion, SLD-strong: forgotten | 0.0%" in told.out
    assert "the base with a negative prompt: retained" in told.out


def test_without_guidance_it_is_left_out_and_said(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="cat")
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy", "safe_latent_diffusion"]}
    told = cli("train", recipe_file(evaluation=asked), "--sampling.guidance", "1")
    assert told.status == 0, told.err
    refusal = json.loads((tmp_path / "run/evaluation.json").read_text())["refused"]["safe_latent_diffusion"]
    assert "draws without classifier-free guidance" in refusal
    strange = {"safe_latent_diffusion": {"strengths": ["extreme"]}}
    refused(cli("train", recipe_file(evaluation=strange)), "safe_latent_diffusion.strengths", "'extreme'")
