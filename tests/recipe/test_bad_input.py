"""Bad input: one message with field, value and remedy, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file


def test_missing_model(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    refused(cli("train", recipe_file(), "--model.base", missing), f"model.base = '{missing}': there is no such folder")
    assert not (tmp_path / "run").exists()
    (tmp_path / "empty").mkdir()
    refused(cli("train", recipe_file(), "--model.base", tmp_path / "empty"), "has no model_index.json")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_corrupt_model(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path, part: str, damage: str
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "copy")
    (weights,) = (base / part).glob("*.safetensors")
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    refused(cli("train", recipe_file(), "--model.base", base), f"model.base = '{base}': cannot be loaded", "complete")
    assert not (tmp_path / "run/recipe.yaml").exists()


def test_pickles_are_refused_unless_asked_for(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "copy")
    (weights,) = (base / "unet").glob("*.safetensors")
    torch.save(load_file(weights), base / "unet/diffusion_pytorch_model.bin")
    weights.unlink()
    refused(cli("train", recipe_file(), "--model.base", base), "are opened with model.allow_pickle: true only")
    assert cli("train", recipe_file(), "--model.base", base, "--model.allow_pickle", "true").status == 0


def test_unreadable_single_file(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(cli("train", recipe_file(), "--model.base", tmp_path / "model.safetensors"), "cannot be loaded")


def test_targets_that_match_nothing(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(
        cli("train", recipe_file(), "--adapter.targets", r"['.*attn3\.to_q']"),
        r"adapter.targets = '.*attn3\\.to_q': matches no module",
        "Presets: text, cross_attention, self_attention",
        "attn2.to_q",
    )
    refused(cli("train", recipe_file(), "--adapter.targets", "atention"), "Did you mean 'attention'?")


def test_an_output_folder_that_holds_a_run(recipe_file: RecipeFile, cli: Cli) -> None:
    assert cli("train", recipe_file()).status == 0
    refused(cli("train", recipe_file()), "holds a run already. Continue it with --resume, replace it with --overwrite")
    assert cli("train", recipe_file(), "--overwrite").status == 0


def test_nothing_to_evaluate(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("evaluate", recipe_file()), "holds no adapter. Train first")


def test_losses_that_are_not_finite(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    result = cli("train", recipe_file(), "--training.learning_rate", "1e30", "--training.steps", "9")
    refused(result, "is not finite at step", "the step was not taken.", "Lower training.learning_rate")
    run = tmp_path / "run"
    assert not (run / "pytorch_lora_weights.safetensors").exists()
    for checkpoint in (run / "checkpoints").glob("step-*/adapter.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint).values())


def test_a_gpu_that_is_not_there(recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(
        cli("train", recipe_file(), "--model.device", "cuda"), "model.device = 'cuda': this machine has no usable GPU"
    )
    refused(cli("train", recipe_file(), "--model.dtype", "float16"), "model.dtype = 'float16'", "Use bfloat16.")


def test_unknown_demo_concept(cli: Cli) -> None:
    refused(
        cli("demo", "--concept", "cats"), "--concept = 'cats': the demo model does not know it. Did you mean 'cat'?"
    )
