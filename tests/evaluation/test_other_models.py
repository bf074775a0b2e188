"""What other erasers publish, evaluated by the same command: pipelines, single files, networks, some weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file, save_file
from single_file import pack
from tiny import tiny_classifier, tiny_sd3_pipeline, tiny_xl_pipeline
from tiny_transformers import (
    tiny_flux_2_klein_pipeline,
    tiny_flux_pipeline,
    tiny_lumina_2_pipeline,
    tiny_qwen_image_pipeline,
    tiny_z_image_pipeline,
)

from erasediff_lora.adapter import formats

PIPELINES: dict[str, Callable[[], Any]] = {
    "stable_diffusion_xl": tiny_xl_pipeline,
    "stable_diffusion_3": tiny_sd3_pipeline,
    "flux": tiny_flux_pipeline,
    "flux_2_klein": tiny_flux_2_klein_pipeline,
    "z_image": tiny_z_image_pipeline,
    "qwen_image": tiny_qwen_image_pipeline,
    "lumina_2": tiny_lumina_2_pipeline,
}
EDITED = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"


@pytest.fixture
def eraser(tiny_base: Path, tmp_path: Path) -> Path:
    """A pipeline in which another eraser changed weights of the network and of the text encoder."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    generator = torch.Generator().manual_seed(5)
    weight = pipeline.unet.get_parameter(EDITED)
    weight.data += 3 * torch.randn(weight.shape, generator=generator)
    bias = pipeline.text_encoder.get_parameter("final_layer_norm.bias")
    bias.data += torch.randn(bias.shape, generator=generator)
    pipeline.save_pretrained(tmp_path / "eraser")
    return tmp_path / "eraser"


@pytest.fixture
def asked(recipe_file: RecipeFile, tmp_path: Path) -> Path:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="cat")
    return recipe_file(evaluation={"judge": f"transformers:{judge}", "metrics": ["accuracy", "drift"]})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def drift(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return {name: found["metrics"]["drift"][name] for name in ("prediction", "structural_similarity")}


def test_a_pipeline_and_a_single_file_of_it_have_the_same_numbers(
    eraser: Path, asked: Path, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    before = contents(eraser)
    told = cli("evaluate", eraser, "--recipe", asked)
    assert told.status == 0, told.err
    assert contents(eraser) == before, "nothing is written into it"
    own = tmp_path / "eraser-evaluation"
    assert (own / "report.html").is_file() and "eraser-evaluation" in told.out
    assert drift(own)["structural_similarity"] < 1 and drift(own)["prediction"]["drift"][0] > 0

    file = pack(eraser, tmp_path / "single.safetensors")
    told = cli("evaluate", file, "--recipe", asked)
    assert told.status == 0, told.err
    assert drift(tmp_path / "single-evaluation") == drift(own)
    facts = json.loads((tmp_path / "single-evaluation/evaluation.json").read_text())["adapter"]
    assert facts["file"] == "single.safetensors" and facts["bytes"] == file.stat().st_size


def test_the_pictures_are_those_of_the_other_model(eraser: Path, asked: Path, cli: Cli, tmp_path: Path) -> None:
    from erasediff_lora.evaluation.candidates import load_candidates
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe import Recipe

    recipe = Recipe.load(asked)
    evidence = Evidence(recipe, load_candidates(recipe, eraser))
    erased, base = evidence.candidates.erased, evidence.candidates.base
    drawn = [evidence.retain(candidate)[0] for candidate in (erased, base, erased)]
    pipeline = StableDiffusionPipeline.from_pretrained(eraser)
    own = pipeline(
        [item.prompt.text for item in evidence.retain(erased)],
        num_inference_steps=recipe.sampling.steps,
        guidance_scale=recipe.sampling.guidance,
        generator=[torch.Generator().manual_seed(item.seed) for item in evidence.retain(erased)],
    ).images[0]
    assert drawn[0].image.tobytes() == own.tobytes() != drawn[1].image.tobytes()


def test_the_network_alone_and_some_of_its_weights(
    eraser: Path, asked: Path, tiny_base: Path, cli: Cli, tmp_path: Path
) -> None:
    """Of the network alone, as a folder, a file, a file in the authors' layout, and only what was changed."""
    shutil.copytree(eraser / "unet", tmp_path / "network")
    weights = load_file(eraser / "unet/diffusion_pytorch_model.safetensors")
    save_file(weights, tmp_path / "whole.safetensors")
    save_file({f"unet.{EDITED}": weights[EDITED]}, tmp_path / "partial.safetensors")
    packed = load_file(pack(eraser, tmp_path / "all.safetensors"))
    alone = {name: tensor for name, tensor in packed.items() if name.startswith("model.diffusion_model.")}
    save_file(alone, tmp_path / "ldm.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "pickled.pt")

    found = {}
    for name in ("network", "whole.safetensors", "partial.safetensors", "ldm.safetensors", "pickled.pt"):
        trusted = ["--model.allow_pickle", "true"] if name.endswith(".pt") else []
        told = cli("evaluate", tmp_path / name, "--recipe", asked, *trusted)
        assert told.status == 0, (name, told.err)
        found[name] = drift(tmp_path / f"{name.partition('.')[0]}-evaluation")
    assert len({json.dumps(value) for value in found.values()}) == 1, found


def test_a_file_of_16_bits_changes_only_what_was_changed(eraser: Path, tiny_base: Path, tmp_path: Path) -> None:
    """And of the base itself nothing: relearning and fine-tuning then train its attention."""
    from erasediff_lora import denoisers
    from erasediff_lora.evaluation.erasures import WeightChanges, load_erasure
    from erasediff_lora.recipe import Model

    changed = []
    for folder in (eraser, tiny_base):
        file = pack(folder, tmp_path / f"{folder.name}-half.safetensors", torch.float16)
        erasure = load_erasure(denoisers.load(Model(base=str(tiny_base))), file)
        assert isinstance(erasure, WeightChanges)
        changed.append((len(erasure.weights), erasure.modules))
    assert changed[0] == (2, [EDITED.removesuffix(".weight")])
    assert changed[1][0] == 0 and EDITED.removesuffix(".weight") in changed[1][1]


@pytest.mark.parametrize("family", list(PIPELINES))
def test_every_family(family: str, tmp_path: Path) -> None:
    """The base itself, one changed weight, and what a linear probe reads in the middle of the network."""
    from erasediff_lora import denoisers
    from erasediff_lora.evaluation.attacks.linear_probe import activations
    from erasediff_lora.evaluation.erasures import WeightChanges
    from erasediff_lora.evaluation.other_models import parameters_of, weights_of
    from erasediff_lora.recipe import Model

    PIPELINES[family]().save_pretrained(tmp_path / "base")
    denoiser = denoisers.load(Model(base=str(tmp_path / "base"), family=family))
    same = WeightChanges(denoiser, weights_of(denoiser, tmp_path / "base"), tmp_path)
    assert not same.weights and same.modules
    parameters = parameters_of(denoiser)
    place = next(name for name in parameters if name.startswith(denoiser.component) and name.endswith("weight"))
    base = parameters[place].data.clone()
    save_file({place.partition(".")[2]: base + 1}, tmp_path / "one.safetensors")
    changed = WeightChanges(denoiser, weights_of(denoiser, tmp_path / "one.safetensors"), tmp_path)
    for strength, wanted in ((1.0, base + 1), (0.5, base + 0.5), (0.0, base)):
        changed.set_strength(strength)
        assert torch.allclose(parameters[place].data, wanted, atol=1e-6)

    steps = torch.full((3,), denoiser.noise_scheduler.config.num_train_timesteps // 2)
    latents = torch.randn(3, *denoiser.latent_shape(64 if denoiser.resolution > 64 else denoiser.resolution))
    features = activations(denoiser, denoiser.noise_scheduler.add_noise(latents, latents, steps), steps, "")
    assert features.shape[0] == 3 and features.ndim == 2 and bool(features.isfinite().all())


def test_another_persons_adapter_has_a_report_of_its_own(asked: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", asked).status == 0
    file = tmp_path / "stranger.safetensors"
    formats.write(formats.read(tmp_path / "run/pytorch_lora_weights.safetensors"), file, "kohya")
    assert cli("evaluate", file, "--recipe", asked, "--force").status == 0
    assert (tmp_path / "stranger-evaluation/report.html").is_file()


def test_a_merged_copy_has_the_numbers_of_its_adapter(asked: Path, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", asked, "--training.learning_rate", "0.05").status == 0
    assert cli("merge", tiny_base, tmp_path / "run", "--output", tmp_path / "merged").status == 0
    told = cli("evaluate", tmp_path / "merged", "--recipe", asked)
    assert told.status == 0, told.err
    own, merged = drift(tmp_path / "run"), drift(tmp_path / "merged-evaluation")
    assert merged["prediction"]["drift"] == pytest.approx(own["prediction"]["drift"], rel=1e-3)
    assert merged["structural_similarity"] == pytest.approx(own["structural_similarity"], abs=0.02)


def test_survival_of_another_model(eraser: Path, asked: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", asked).status == 0
    more = ["--evaluation.survival", "[quantise, stack, other_base]", "--evaluation.survival_samples", "2"]
    more += ["--evaluation.quantise.formats", "[fp8]", "--evaluation.stack.adapters", f"[{tmp_path / 'run'}]"]
    more += ["--evaluation.other_base.bases", f"[{eraser}]"]
    told = cli("evaluate", eraser, "--recipe", asked, *more)
    assert told.status == 0, told.err
    result = json.loads((tmp_path / "eraser-evaluation/evaluation.json").read_text())
    assert sorted(result["survival"]) == ["quantise", "stack"]
    assert "holds weights of a model" in result["refused"]["other_base"]


def test_what_is_no_model_of_this_base(eraser: Path, asked: Path, cli: Cli, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "model.ckpt")
    refused(
        cli("evaluate", tmp_path / "model.ckpt", "--recipe", asked),
        "model = ",
        "is a pickle, which can run code",
        "--model.allow_pickle true",
    )
    save_file({"a.weight": torch.zeros(2), "b.weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
    refused(
        cli("evaluate", tmp_path / "odd.safetensors", "--recipe", asked),
        "has 2 of 2 tensors that are no weights of tiny, the first a.weight [2]",
        "Give a recipe with the base that it was made from",
    )
    tiny_xl_pipeline().save_pretrained(tmp_path / "xl")
    refused(cli("evaluate", tmp_path / "xl", "--recipe", asked), "model = ", "is a StableDiffusionXLPipeline")
    unet = UNet2DConditionModel.from_pretrained(eraser / "unet")
    wide = UNet2DConditionModel.from_config({**unet.config, "cross_attention_dim": 16})
    wide.save_pretrained(tmp_path / "wide")
    refused(
        cli("evaluate", tmp_path / "wide", "--recipe", asked),
        "does not fit the base",
        "is [16, 16] in it, and [16, 32] in the base",
    )
    refused(cli("evaluate", tmp_path / "gone", "--recipe", asked), "no such file")
    assert not list(tmp_path.glob("*-evaluation")), "nothing is left behind"
