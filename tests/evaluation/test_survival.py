"""What an erasure outlives: fine-tuning, fewer bits, merging, other adapters, other bases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Cli, RecipeFile
from refusals import refused
from tiny import tiny_classifier

from erasediff_lora.evaluation.candidates import load_candidates
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.survival.finetune import Finetune
from erasediff_lora.evaluation.survival.finetune_full import FinetuneFull
from erasediff_lora.evaluation.survival.merge import Merge
from erasediff_lora.evaluation.survival.weights import BLOCK, NF4, merged, to_float8, to_int8, to_nf4
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import SURVIVAL

SMALL = {"steps": [1, 3], "batch_size": 2, "learning_rate": 0.05}


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_classifier(tmp_path_factory.mktemp("judge") / "always_cat", ["cat", "dog", "car"], favourite="cat")


def asked(judge: Path, tiny_base: Path, **changes: Any) -> dict[str, Any]:
    return {
        "judge": f"transformers:{judge}",
        "metrics": ["accuracy"],
        "survival_samples": 3,
        "finetune": SMALL,
        "finetune_full": SMALL | {"weights": "cross_attention"},
        "other_base": {"bases": [str(tiny_base)]},
    } | changes


def test_everything_is_done_to_both_models_and_undone(
    recipe_file: RecipeFile, judge: Path, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file(evaluation=asked(judge, tiny_base))
    assert cli("train", file, "--training.learning_rate", "0.05").status == 0
    run = tmp_path / "run"
    shutil.copytree(run, tmp_path / "another")
    names = list(SURVIVAL)
    given = ["--evaluation.survival", json.dumps(names), "--evaluation.stack.adapters", f"[{tmp_path / 'another'}]"]
    given += ["--evaluation.attacks", "[latent_start]", "--evaluation.latent_start", "{samples: 2, strengths: [0.5]}"]
    told = cli("evaluate", run, *given)
    assert told.status == 0, told.err
    found = json.loads((run / "evaluation.json").read_text())
    assert list(found["survival"]) == names and not found["refused"]
    variants = {name: list(entry["variants"]) for name, entry in found["survival"].items()}
    assert variants == {
        "finetune": ["as it is", "1 steps", "3 steps"],
        "finetune_full": ["as it is", "1 steps", "3 steps"],
        "quantise": ["as it is", "fp8", "int8", "nf4"],
        "merge": ["as it is", "1, float16", "0.8", "0.9", "1.1", "1.2"],
        "stack": ["as it is", "another"],
        "other_base": ["as it is", tiny_base.name],
    }
    for entry in found["survival"].values():
        for numbers in entry["variants"].values():
            assert numbers["unlearning_accuracy"] == numbers["unlearning_accuracy_base"] == 0.0, "cats everywhere"
            assert numbers["per_concept"] == {"cat": 0.0} and numbers["counted"]["forget"] == 2
    page = (run / "report.html").read_text()
    assert "Survival" in page and "nf4" in page
    table = cli("compare", run, "--output", tmp_path / "c.html").out
    assert "| after quantise, nf4, forgotten | 0.0% |" in table

    again = cli("evaluate", run, *given, "--cache", tmp_path / "new", "--output", tmp_path / "again", "--recipe", run)
    assert again.status == 0, again.err
    assert json.loads((tmp_path / "again/evaluation.json").read_text())["survival"] == found["survival"]
    alone = [word if word != json.dumps(names) else "[]" for word in given]
    assert (
        cli("evaluate", run, *alone, "--cache", tmp_path / "n2", "--output", tmp_path / "o", "--recipe", run).status
        == 0
    )
    strip = "pictures/latent_start-strip-1.webp"
    assert (run / strip).read_bytes() == (tmp_path / "o" / strip).read_bytes(), "nothing is left in the models"


@pytest.fixture
def evidence(recipe_file: RecipeFile, judge: Path, tiny_base: Path, cli: Cli, tmp_path: Path) -> Evidence:
    file = recipe_file(evaluation=asked(judge, tiny_base))
    assert cli("train", file, "--training.learning_rate", "0.05").status == 0
    recipe = Recipe.load(tmp_path / "run/recipe.yaml", {"cache": str(tmp_path / "fresh")})
    return Evidence(recipe, load_candidates(recipe, tmp_path / "run/pytorch_lora_weights.safetensors"))


def test_merged_weights_draw_what_the_adapter_draws_at_that_strength(evidence: Evidence) -> None:
    candidates = evidence.candidates
    drawn = Merge("merge").draw(evidence, candidates.erased, ["1.2", "0.5"])
    for variant, (forget, _) in drawn.items():
        loaded = candidates.at(float(variant)).generate(evidence.forget_prompts[:3], evidence.forget_seed, "forget")
        base = candidates.base.generate(evidence.forget_prompts[:3], evidence.forget_seed, "forget")
        for one, other, plain in zip(forget, loaded, base, strict=True):
            pixels = [np.asarray(item.image, dtype=int) for item in (one, other, plain)]
            assert np.abs(pixels[0] - pixels[1]).max() <= 1 < np.abs(pixels[0] - pixels[2]).max()


@pytest.mark.parametrize("hardship", [FinetuneFull("finetune_full"), Finetune("finetune")])
def test_fine_tuning_starts_from_the_erased_model(evidence: Evidence, hardship: Any) -> None:
    """A step that changes nothing draws what the erased model draws, and not what the base does."""
    evidence.settings(hardship.Settings).learning_rate = 1e-12
    candidates, prompts, seed = evidence.candidates, evidence.forget_prompts[:2], evidence.forget_seed
    drawn = hardship.draw(evidence, candidates.erased, ["1 steps", "3 steps"])
    erased, base = (one.generate(prompts, seed, "forget") for one in (candidates.erased, candidates.base))
    for tuned, _ in drawn.values():
        for one, other, plain in zip(tuned, erased, base, strict=False):
            pixels = [np.asarray(item.image, dtype=int) for item in (one, other, plain)]
            assert np.abs(pixels[0] - pixels[1]).max() <= 1 < np.abs(pixels[0] - pixels[2]).max()


@pytest.mark.parametrize("name", ["erased", "base"])
def test_merging_leaves_every_bit_as_it_was(evidence: Evidence, name: str) -> None:
    candidate = getattr(evidence.candidates, name)
    network = candidate.denoiser.network
    with candidate.in_layers():
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with merged(candidate) as (weights, base):
            moved = [key for key, weight in weights.items() if not torch.equal(weight.data, base[key])]
            assert bool(moved) == (name == "erased")
            for weight in weights.values():
                weight.data.zero_()
        after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())


def test_looking_on_sees_what_the_adapter_makes_and_leaves_every_bit(evidence: Evidence) -> None:
    """For drawing and searching the adapter is merged; the base comes back, and the adapter in its layers too."""
    candidates = evidence.candidates
    network = candidates.base.denoiser.network
    noisy, steps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 500])
    prompts = candidates.base.denoiser.encode_prompts(["a cat", "a dog"])

    def predicted(context: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with context as denoiser, torch.no_grad():
            weights = {key: value.clone() for key, value in network.state_dict().items()}
            return denoiser.predict(noisy, steps, prompts), weights

    base, own = predicted(candidates.base.in_layers())
    layered, in_layers = predicted(candidates.erased.in_layers())
    for strength in (1.0, 0.5, 1.0):
        seen, merged_weights = predicted(candidates.at(strength).active())
        assert not all(torch.equal(value, merged_weights[key]) for key, value in own.items())
        if strength == 1:
            torch.testing.assert_close(seen, layered, rtol=1e-4, atol=1e-5)
        assert (seen - base).abs().max() > 1e-3
        for context, was, kept in (
            (candidates.base.active(), base, own),
            (candidates.erased.in_layers(), layered, in_layers),
        ):
            again, weights = predicted(context)
            assert torch.equal(again, was) and all(torch.equal(value, weights[key]) for key, value in kept.items())


def test_fewer_bits_are_the_nearest_ones() -> None:
    weight = torch.randn(7, 37, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().max(dim=1, keepdim=True).values / 127
    for row in range(7):
        grid = torch.arange(-127, 128) * scale[row]
        nearest = grid[(weight[row, :, None] - grid).abs().argmin(dim=1)]
        assert torch.allclose(to_int8(weight)[row], nearest, atol=1e-6)
    flat = weight.flatten()
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        grid = torch.tensor(NF4) * block.abs().max()
        nearest = grid[(block[:, None] - grid).abs().argmin(dim=1)]
        assert torch.allclose(to_nf4(weight).flatten()[start : start + BLOCK], nearest, atol=1e-6)
    assert torch.equal(to_float8(weight), weight.to(torch.float8_e4m3fn).float())
    assert to_float8(torch.tensor([1e6])).item() == 448.0


def test_nf4_is_that_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    assert torch.allclose(functional.dequantize_4bit(packed, state), to_nf4(weight), atol=1e-5)


def test_bad_input_is_refused_before_anything_is_drawn(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    refused(
        cli("train", recipe_file(evaluation={"survival": ["quantize"]})),
        "evaluation.survival.0",
        "Did you mean 'quantise'?",
    )
    refused(
        cli("train", recipe_file(evaluation={"survival": ["stack", "other_base"]})),
        "evaluation.stack.adapters = None: names no adapter to stack with",
        "evaluation.other_base.bases = None: names no other base",
    )
    file = recipe_file(evaluation={"survival": ["stack"], "stack": {"adapters": [str(tmp_path / "no.safetensors")]}})
    refused(cli("train", file), "no.safetensors")
    refused(cli("train", recipe_file(evaluation={"merge": {"strengths": [0]}})), "evaluation.merge.strengths = 0.0")
    refused(
        cli("train", recipe_file(evaluation={"finetune_full": {"steps": [0]}})), "evaluation.finetune_full.steps = 0.0"
    )
    assert not (tmp_path / "run").exists()
