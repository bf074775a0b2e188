"""The Stable Diffusion XL family on a tiny random base: what the network is given, and every verb."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from fixtures import Cli
from refusals import refused
from safetensors.torch import load_file
from tiny import tiny_xl_pipeline

from erasediff_lora import denoisers
from erasediff_lora.recipe import Model, Sampling

FAMILY, PIPELINE = "stable_diffusion_xl", tiny_xl_pipeline
PROMPTS = ["a photo of a cat", "a dog"]


@pytest.mark.parametrize("width", [32, 64])
def test_the_network_is_given_what_the_pipeline_gives_it(denoiser: Any, width: int) -> None:
    """Recorded from a plain pipeline without guidance, and compared with `predict` on encoded prompts.

    The size conditioning of a wide picture is that of pictures in a bucket.
    """
    seen = {}

    def record(module: Any, positional: Any, keywords: Any) -> None:
        seen.update(keywords | {"sample": positional[0], "timestep": positional[1]})

    pipe = denoiser.pipeline
    handle = pipe.unet.register_forward_pre_hook(record, with_kwargs=True)
    pipe(PROMPTS, height=32, width=width, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    handle.remove()
    with torch.no_grad():
        added = {key: value.float() for key, value in seen["added_cond_kwargs"].items()}
        expected = pipe.unet(
            seen["sample"], seen["timestep"], encoder_hidden_states=seen["encoder_hidden_states"],
            added_cond_kwargs=added,
        ).sample  # fmt: skip
        assert added["time_ids"][0].tolist() == [32, width, 0, 0, 32, width]
        ours = denoiser.predict(seen["sample"], seen["timestep"].expand(2), denoiser.encode_prompts(PROMPTS))
    torch.testing.assert_close(ours, expected)


def test_drawing_from_embeddings_is_drawing_from_prompts(denoiser: Any) -> None:
    sampling = Sampling(steps=2, guidance=3.0)
    by_text = denoiser.generate(PROMPTS, [1, 2], sampling, output="latent")
    by_embedding = denoiser.generate(denoiser.encode_prompts(PROMPTS), [1, 2], sampling, output="latent")
    torch.testing.assert_close(by_embedding, by_text)


def test_slots_hold_embeddings_of_both_encoders(denoiser: Any) -> None:
    word = denoiser.embed_word("cat").detach().requires_grad_()
    assert word.shape[1] == 48 == denoiser.token_embeddings.shape[1]
    slots = denoiser.encode_slots(["a photo of a <*>"], word)
    torch.testing.assert_close(slots.parts, denoiser.encode_prompts(["a photo of a cat"]).parts)
    for part in (slots.tokens[:, :, :32], slots.tokens[:, :, 32:], slots.pooled):
        (gradient,) = torch.autograd.grad(part.square().sum(), [word], retain_graph=True)
        assert float(gradient.abs().sum()) > 0


def test_the_empty_prompt_is_what_guidance_takes_for_it(denoiser: Any) -> None:
    told = denoiser.encode_prompts(["", "a dog"])
    for part in told.parts.values():
        assert not bool(part[0].any()) and bool(part[1].any())


def test_train_evaluate_merge_convert_publish(base: Any, recipe: Any, cli: Cli, tmp_path: Path) -> None:
    search = "{steps: 1, restarts: 1, samples: 2, batch_size: 2}"
    robust = {"preset": "robust", "adversary": {"refresh_every": 1, "steps": 1, "batch_size": 2}}
    result = cli("train", recipe(**robust), "--evaluation.metrics", "[drift]")
    assert result.status == 0, result.err
    run = tmp_path / "run"
    adapter = load_file(run / "pytorch_lora_weights.safetensors")
    assert all(bool(tensor.any()) for name, tensor in adapter.items() if "lora_B" in name)
    assert "drift" in json.loads((run / "evaluation.json").read_text())["metrics"]
    assert cli("evaluate", run, "--evaluation.inversion", search).status == 0

    assert cli("merge", base, run, "--output", tmp_path / "merged").status == 0
    plain = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    plain.load_lora_weights(run)
    merged = StableDiffusionXLPipeline.from_pretrained(tmp_path / "merged", add_watermarker=False)
    drawn = []
    for pipe in (plain, merged):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn.append(
            pipe("a cat", height=32, width=32, num_inference_steps=2, generator=generator, output_type="latent").images
        )
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-4, rtol=1e-4)

    (kohya,) = run.glob("erase-*.safetensors")
    assert any(name.startswith("lora_unet_input_blocks_") for name in load_file(kohya))
    assert cli("convert", kohya, tmp_path / "back", "--format", "diffusers").status == 0
    back = load_file(tmp_path / "back/pytorch_lora_weights.safetensors")
    assert back.keys() == adapter.keys() and all(torch.equal(back[name], adapter[name]) for name in back)
    assert cli("publish", run, "--repo", "me/xl", "--dry_run").status == 0


def test_the_wrong_family_is_named(base: Any, tiny_base: Path, recipe: Any, cli: Cli) -> None:
    refused(
        cli("train", recipe(model={"base": str(base)})),
        "model.family = 'stable_diffusion'", "is a StableDiffusionXLPipeline", "stable_diffusion_xl",
    )  # fmt: skip
    refused(
        cli("train", recipe(model={"base": str(tiny_base), "family": "stable_diffusion_xl"})),
        "model.family = 'stable_diffusion_xl'", "is a StableDiffusionPipeline", "Set model.family: stable_diffusion.",
    )  # fmt: skip


@pytest.mark.parametrize("force_upcast", [True, False])
def test_an_autoencoder_that_float16_overflows_works_in_float32(tmp_path: Path, force_upcast: bool) -> None:
    """Both ways, as its configuration says; beyond it all stays in float16."""
    pipe = tiny_xl_pipeline()
    pipe.vae.register_to_config(force_upcast=force_upcast)
    for part in (pipe.vae.encoder, pipe.vae.decoder):
        part.conv_in.weight.data *= 1e5
    pipe.save_pretrained(tmp_path / "base")
    base = denoisers.load(Model(base=str(tmp_path / "base"), family=FAMILY))
    base.dtype = torch.float16  # refused on a CPU where a recipe asks for it: it is slow there
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = base.encode_images(pixels)
    sheet = np.array(base.decode(torch.full((1, 4, 4, 4), 3.0))[0], dtype=int)
    assert latents.dtype == base.pipeline.vae.dtype == torch.float16
    vae = pipe.vae.half().float()
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        picture = vae.decode(torch.full((1, 4, 4, 4), 3.0) / vae.config.scaling_factor).sample[0]
    shown = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert bool(torch.isfinite(latents).all()) == (np.abs(sheet - shown).max() <= 1) == force_upcast
    if force_upcast:
        torch.testing.assert_close(latents.float(), expected, rtol=2e-3, atol=1e-3)
