"""`adapter: none`: the base's own weights, under every objective, and what a run without adapter leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused
from safetensors.torch import load_file

from erasediff_lora.registry import OBJECTIVES

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FORGET = {"concepts": [{"name": "cat", "anchor": "dog"}]}


@pytest.fixture
def full(recipe_file: RecipeFile) -> Any:
    def write(targets: str = "all", **sections: Any) -> Any:
        file = recipe_file(forget=FORGET, **sections)
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"adapter": "none"}))
        if targets != "all":
            adapter = {"kind": "none", "targets": targets}
            file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"adapter": adapter}))
        return file

    return write


def moved(run: Any, base: Any) -> set[str]:
    after = UNet2DConditionModel.from_pretrained(run / "unet").state_dict()
    before = UNet2DConditionModel.from_pretrained(base / "unet").state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("uce", "rece")])
def test_every_objective_trains_all_weights_and_resumes_to_the_bit(
    name: str, full: Any, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    file = full(objective={"name": name})
    assert cli("train", file).status == 0
    assert moved(tmp_path / "run", tiny_base)
    assert cli("train", file, "--output", tmp_path / "cut", "--training.steps", "2").status == 0
    assert cli("train", file, "--output", tmp_path / "cut", "--resume").status == 0
    whole, cut = load_file(tmp_path / "run" / WEIGHTS), load_file(tmp_path / "cut" / WEIGHTS)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize(
    ("targets", "belongs"),
    [
        ("cross_attention", lambda name: ".attn2.to_" in name),
        ("no_cross_attention", lambda name: ".attn2." not in name and not name.startswith(("time_", "conv_out"))),
        ([r".*\bnorm1"], lambda name: ".norm1." in name),
        ("all", lambda name: True),
    ],
)
def test_subsets_of_the_weights(
    targets: Any, belongs: Any, full: Any, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", full(targets, training={"learning_rate": 0.01})).status == 0
    changed = moved(tmp_path / "run", tiny_base)
    could = {name for name in load_file(tmp_path / "run" / WEIGHTS) if belongs(name)}
    assert changed <= could and len(changed) > 0.8 * len(could)


def test_the_first_step_is_the_papers(full: Any, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    """EraseDiff on all weights, one step, against the formulas written out on the plain network."""
    from erasediff_lora import denoisers
    from erasediff_lora.data import sets
    from erasediff_lora.data.batches import BatchSampler
    from erasediff_lora.recipe import Recipe

    objective = {"preset": "paper", "target": "uniform", "barrier": "grad_norm", "eta": 1.0}
    rate = 1e-3
    training = {"steps": 1, "learning_rate": rate, "max_grad_norm": 1e9, "batch_size": 4}
    file = full(objective=objective, training=training)
    assert cli("train", file).status == 0
    recipe = Recipe.load(file)
    denoiser = denoisers.load(recipe.model)
    data = [sets.prepare(recipe, denoiser, kind) for kind in ("forget", "retain")]
    (forget,), (retain,) = BatchSampler.of(recipe, data[0], data[1], denoiser).draw(0)
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet").train()
    parameters = [p for _, p in sorted(unet.named_parameters())]

    def gradient(batch: Any, target: Any) -> Any:
        loss = (unet(batch.noisy, batch.timesteps, batch.prompts.tokens).sample - target).square().mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    retained, erased = gradient(retain, retain.target), gradient(forget, forget.extras["uniform"])
    multiplier = torch.clamp((erased @ erased - retained @ erased) / (erased @ erased), min=0)
    direction = retained + multiplier * erased
    after = load_file(tmp_path / "run" / WEIGHTS)
    before = torch.cat([p.detach().flatten() for p in parameters])
    change = torch.cat([after[name].flatten() for name, _ in sorted(unet.named_parameters())]) - before
    clear = direction.abs() > 1e-6  # where Adam's epsilon does not matter, its first step is the sign
    torch.testing.assert_close(change[clear], -rate * direction[clear].sign(), atol=2e-5, rtol=0)
    assert float(clear.float().mean()) > 0.5


def test_the_evaluation_draws_with_the_trained_weights(full: Any, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    file = full(training={"learning_rate": 0.01}, evaluation={"forget_samples": 2, "retain_samples": 2})
    assert cli("train", file).status == 0
    found = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert found["adapter"]["file"] == "diffusion_pytorch_model.safetensors"
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["model"]["dtype"] == "float32"
    assert (tmp_path / "run/pictures/forget-1-base.png").read_bytes() != (
        tmp_path / "run/pictures/forget-1-erased.png"
    ).read_bytes()
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "run/unet")
    by_hand = StableDiffusionPipeline.from_pretrained(tiny_base, unet=unet, safety_checker=None)
    by_hand.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in found["seeds"]["forget"]]
    pictures = by_hand(
        ["a photo of a cat"] * 2, height=32, width=32, num_inference_steps=2, guidance_scale=2.0, generator=generators
    ).images
    shown = Image.open(tmp_path / "run/pictures/forget-1-erased.png").convert("RGB")
    assert any(shown.tobytes() == picture.tobytes() for picture in pictures)


def test_an_adapter_can_be_extracted_from_the_run(full: Any, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", full("cross_attention", training={"learning_rate": 0.01})).status == 0
    out = tmp_path / "extracted"
    result = cli("extract", tiny_base, tmp_path / "run", "--rank", "64", "--output", out)
    assert result.status == 0 and "100.0000% of the energy" in result.out


def test_bad_input_is_named(full: Any, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    refused(
        cli("train", full(), "--model.dtype", "bfloat16"),
        "model.dtype = 'bfloat16': is too coarse for weights that are trained", "float32",
    )  # fmt: skip
    refused(
        cli("train", full("crossattention")), "adapter.targets = 'crossattention': is no preset", "'cross_attention'"
    )
    refused(cli("train", full(["attn9"])), "adapter.targets = 'attn9': matches no module")
    refused(cli("train", recipe_file(adapter={"kind": "none", "rank": 4})), "adapter.rank = 4: is unknown")
    assert cli("train", full()).status == 0
    refused(cli("train", recipe_file(), "--resume"), "adapter.kind = 'lora': was 'none' when the run was started")
    refused(cli("merge", tmp_path / "run", tmp_path / "run", "--output", tmp_path / "m"), "holds no adapter file")
