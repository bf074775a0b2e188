"""What a base was trained to predict, and from which noise: as it says, or as the recipe does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file, save_file
from single_file import pack
from tiny import tiny_pipeline

from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.data.batches import BatchSampler
from erasediff_lora.recipe import Model, Recipe


def with_keys(base: Path, file: Path, *keys: str, header: dict[str, str] | None = None) -> Path:
    """A single-file checkpoint with keys that trainers leave there."""
    weights = load_file(pack(base, file))
    save_file(weights | {key: torch.empty(0) for key in keys}, file, header)
    return file


@pytest.mark.parametrize(
    ("keys", "said", "predicted"),
    [
        (("model.v_pred",), None, "v_prediction"),
        ((), "v", "v_prediction"),
        ((), "epsilon", "epsilon"),
        ((), "Q", "epsilon"),
        (("v_pred",), "epsilon", "v_prediction"),
        (("some.v_pred_of_another_kind",), None, "epsilon"),
    ],
)
def test_wherever_a_single_file_says_it(
    tiny_base: Path, tmp_path: Path, keys: Any, said: str | None, predicted: str
) -> None:
    header = None if said is None else {"modelspec.prediction_type": said}
    file = with_keys(tiny_base, tmp_path / "model.safetensors", *keys, header=header)
    base = denoisers.load(Model(base=str(file), config=tiny_base))
    assert base.noise_scheduler.config.prediction_type == predicted
    assert base.pipeline.scheduler.config.prediction_type == predicted


@pytest.mark.parametrize("nested", [False, True])
def test_a_pickled_checkpoint_says_it_too(tiny_base: Path, tmp_path: Path, nested: bool) -> None:
    weights = load_file(pack(tiny_base, tmp_path / "model.safetensors")) | {"v_pred": torch.empty(0)}
    torch.save({"state_dict": weights} if nested else weights, tmp_path / "model.ckpt")
    base = denoisers.load(Model(base=str(tmp_path / "model.ckpt"), config=tiny_base, allow_pickle=True))
    assert base.noise_scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("keys", [(), ("v_pred",), ("v_pred", "ztsnr")])
def test_the_keys_of_a_single_file_say_what_it_predicts(tiny_base: Path, tmp_path: Path, keys: Any) -> None:
    file = with_keys(tiny_base, tmp_path / "model.safetensors", *keys)
    base = denoisers.load(Model(base=str(file), config=tiny_base))
    for scheduler in (base.noise_scheduler, base.pipeline.scheduler):
        assert scheduler.config.prediction_type == ("v_prediction" if keys else "epsilon")
        assert scheduler.config.rescale_betas_zero_snr == ("ztsnr" in keys)
    assert (float(base.noise_scheduler.alphas_cumprod[-1]) < 1e-7) == ("ztsnr" in keys)
    assert base.pipeline.scheduler.config.timestep_spacing == ("trailing" if "ztsnr" in keys else "leading")


def test_such_a_file_trains_as_the_folder_that_says_it(
    tiny_base: Path, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    tiny_pipeline("v_prediction").save_pretrained(folder)
    file = with_keys(folder, tmp_path / "model.safetensors", "v_pred")
    adapters = []
    runs: tuple[list[Any], ...] = (
        [file, "--model.config", tiny_base],
        [folder],
        [tiny_base, "--model.prediction_type", "v_prediction"],
        [tiny_base],
    )
    for number, base in enumerate(runs):
        result = cli("train", recipe_file(output=str(tmp_path / str(number))), "--model.base", *base)
        assert result.status == 0, result.err
        adapters.append(load_file(tmp_path / str(number) / "pytorch_lora_weights.safetensors"))
    for name, tensor in adapters[1].items():
        assert torch.equal(adapters[0][name], tensor) and torch.equal(adapters[2][name], tensor), name
    assert any(not torch.equal(adapters[3][name], tensor) for name, tensor in adapters[1].items())


def test_the_recipe_goes_before_the_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    file = with_keys(tiny_base, tmp_path / "model.safetensors", "v_pred")
    base = denoisers.load(Model(base=str(file), config=tiny_base, prediction_type="sample"))
    plain = denoisers.load(Model(base=str(file), config=tiny_base))
    assert base.noise_scheduler.config.prediction_type == base.pipeline.scheduler.config.prediction_type == "sample"
    assert base.fingerprint != plain.fingerprint, "what it draws is not what was drawn before"


def changed_base(tiny_base: Path, folder: Path, **scheduler: Any) -> Path:
    shutil.copytree(tiny_base, folder)
    file = folder / "scheduler/scheduler_config.json"
    values = json.loads(file.read_text())
    if "_class_name" in scheduler:
        values = {"num_train_timesteps": 1000}
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
        (folder / "model_index.json").write_text(json.dumps(index))
    file.write_text(json.dumps(values | scheduler))
    return folder


@pytest.mark.parametrize(("scheduler", "what"), [
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "its scheduler is FlowMatchEulerDiscreteScheduler, which"),
    ({"_class_name": "EDMEulerScheduler"}, "its scheduler is EDMEulerScheduler, which has no betas"),
    ({"prediction_type": "flow_prediction"}, "its DDIMScheduler predicts flow_prediction, which this family does not"),
])  # fmt: skip
def test_schedules_that_are_no_ddpm_are_named(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path, scheduler: Any, what: str
) -> None:
    base = changed_base(tiny_base, tmp_path / "base", **scheduler)
    images = {"images": {"folder": str(tmp_path / "images"), "caption": "a cat"}}
    from picture_folder import pictures

    pictures(tmp_path / "images", (32, 32))
    refused(
        cli("train", recipe_file(forget=images, retain=images), "--model.base", base), f"model.base = '{base}': {what}"
    )


def test_edm_files_are_named(recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    file = with_keys(tiny_base, tmp_path / "model.safetensors", "edm_vpred.sigma_max")
    result = cli("train", recipe_file(), "--model.base", file, "--model.config", tiny_base)
    refused(result, "its scheduler is EDM (key edm_vpred.sigma_max), which has no betas")


def test_flow_matching_takes_no_prediction_type(recipe_file: RecipeFile, cli: Cli) -> None:
    result = cli("train", recipe_file(), "--model.family", "stable_diffusion_3", "--model.prediction_type", "epsilon")
    refused(result, "model.prediction_type = 'epsilon': is not what a model of flow matching predicts. Omit it.")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_has_its_limit_at_zero_snr(
    recipe_file: RecipeFile, tiny_base: Path, tmp_path: Path, prediction_type: str
) -> None:
    """min(SNR, γ) / SNR → 1, min(SNR, γ) / (SNR + 1) → 0, min(SNR, γ) → 0."""
    from picture_folder import pictures

    base = changed_base(tiny_base, tmp_path / "base", rescale_betas_zero_snr=True, prediction_type=prediction_type)
    folder = pictures(tmp_path / "images", (32, 32), (32, 32))
    images = {"images": {"folder": str(folder), "caption": "a cat"}}
    values = {"model": {"base": str(base)}, "training": {"min_snr_gamma": 5.0, "batch_size": 256}}
    recipe = Recipe.load(recipe_file(forget=images, retain=images, **values))
    denoiser = denoisers.load(recipe.model)
    data = [sets.prepare(recipe, denoiser, kind) for kind in ("forget", "retain")]
    sampler = BatchSampler.of(recipe, data[0], data[1], denoiser)
    alphas = denoiser.noise_scheduler.alphas_cumprod.double()
    seen = set()
    for step in range(40):
        _, (retain,) = sampler.draw(step)
        for timestep, weight in zip(retain.timesteps.tolist(), retain.weights.tolist(), strict=True):
            snr = float(alphas[timestep] / (1 - alphas[timestep]))
            units = {"epsilon": min(1, 5 / snr if snr else math.inf), "v_prediction": min(snr, 5) / (snr + 1)}
            assert weight == pytest.approx(units.get(prediction_type, min(snr, 5)), rel=1e-4, abs=1e-7)
            seen.add(timestep)
    assert 999 in seen


def test_drawing_from_zero_snr_is_named_as_the_cause(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    base = changed_base(tiny_base, tmp_path / "base", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    result = cli("train", recipe_file(), "--model.base", base)
    refused(
        result,
        "in torch.float32",
        "the schedule ends in noise alone (zero SNR), where a prediction of the noise says nothing.",
        "Set model.prediction_type: v_prediction if the base was trained so, or give forget.images.",
    )
    assert "float32 or bfloat16" not in result.err
    assert cli("prepare", recipe_file(), "--model.base", base, "--model.prediction_type", "v_prediction").status == 0


def test_nan_in_float32_is_not_cured_by_float32(
    recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    base = changed_base(tiny_base, tmp_path / "base")
    (file,) = (base / "unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_in.bias"].fill_(math.nan)
    save_file(weights, file)
    result = cli("prepare", recipe_file(), "--model.base", base)
    refused(result, "is encoded as NaN or Inf in torch.float32", "the base's own weights or configuration make it.")
    assert "Use model.dtype" not in result.err
