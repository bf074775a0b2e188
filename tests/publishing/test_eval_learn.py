"""The layout for eval-learn's free_run: what that loads, how it draws, and what its metric ua_ira reads."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
from fixtures import Cli
from refusals import refused


def test_it_draws_what_the_base_draws_with_the_adapter(run: Path, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    told = cli("merge", tiny_base, run, "--output", tmp_path / "out", "--eval_learn", run)
    assert told.status == 0, told.err
    assert f"cd {tmp_path / 'out'}; eval-learn run --config config.json" in told.out
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["technique"]["name"] == "free_run"
    options = config["technique"]["config"]

    # as its wrapper does: from_pretrained(model_id), then one prompt at a time with its steps and guidance
    loaded = AutoPipelineForText2Image.from_pretrained(tmp_path / "out" / options["model_id"])
    base = StableDiffusionPipeline.from_pretrained(tiny_base)
    base.load_lora_weights(run, weight_name="pytorch_lora_weights.safetensors")
    pictures = [
        pipeline(
            "a cat",
            generator=torch.Generator().manual_seed(7),
            num_inference_steps=options["num_inference_steps"],
            guidance_scale=options["guidance_scale"],
            output_type="pt",
        ).images
        for pipeline in (loaded, base)
    ]
    assert torch.allclose(pictures[0], pictures[1], atol=2e-3)

    (accuracies,) = [one["config"] for one in config["metrics"] if one["name"] == "ua_ira"]
    for kind, concept in (("target", "cat"), ("retain", accuracies["retain_concept"])):
        with (tmp_path / "out" / accuracies[f"{kind}_prompts_path"]).open() as table:
            prompts = [row["prompt"] for row in csv.DictReader(table)]
        assert prompts and len(set(prompts)) == len(prompts) and all(concept in prompt for prompt in prompts)
    assert accuracies["target_concept"] == "cat" != accuracies["retain_concept"]


def test_eval_learn_itself_takes_the_configuration(
    run: Path, tiny_base: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package of techniques wants packages of all of them, so that free_run is imported past it."""
    found = importlib.util.find_spec("eval_learn")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("eval-learn is not installed")
    (root,) = found.submodule_search_locations
    for name in ("eval_learn", "eval_learn.techniques"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(root).parent / name.replace(".", "/"))]
        monkeypatch.setitem(sys.modules, name, package)
    technique = importlib.import_module("eval_learn.techniques.free_run.wrapper").FreeRunTechnique
    assert cli("merge", tiny_base, run, "--output", tmp_path / "out", "--eval_learn", run).status == 0
    config = json.loads((tmp_path / "out/config.json").read_text())["technique"]["config"]
    model = technique(**config | {"model_id": str(tmp_path / "out/model"), "device": "cpu"})
    (picture,) = model.generate(["a cat"], seed=1)
    assert picture.size == (32, 32)


def test_what_cannot_be(run: Path, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(
        cli("merge", tiny_base / "unet/diffusion_pytorch_model.safetensors", run, "--output", out, "--eval_learn", run),
        "is no diffusers folder, which eval-learn wants",
        "save_pretrained",
    )
    refused(cli("merge", tiny_base, run, "--output", out, "--eval_learn", tiny_base), "has no recipe.yaml")
    refused(
        cli("merge", tiny_base, run, "--output", out, "--eval_learn", run, "--unmerge"), "cannot go with --eval_learn"
    )
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    told = cli("merge", tiny_base, run, "--output", out, "--eval_learn", run, "--overwrite")
    refused(told, "--output = ", "is there already")
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
