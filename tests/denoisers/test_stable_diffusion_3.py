"""The transformer family with flow matching on a tiny random base: train, save, load, stack, merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from fixtures import Cli
from refusals import refused
from safetensors.torch import load_file
from tiny import tiny_sd3_pipeline

from erasediff_lora.data.noising import denoising_target
from erasediff_lora.recipe import Sampling

FAMILY, PIPELINE = "stable_diffusion_3", tiny_sd3_pipeline
PROMPTS = ["a photo of a cat", "a dog"]


def test_the_network_is_given_what_the_pipeline_gives_it(denoiser: Any) -> None:
    """Recorded from a plain pipeline at its first step, where sigma is 1, the last training timestep."""
    seen = {}
    pipe = denoiser.pipeline
    handle = pipe.transformer.register_forward_pre_hook(lambda m, args, kw: seen.update(kw), with_kwargs=True)
    pipe(PROMPTS, height=32, width=32, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    handle.remove()
    last = torch.full((2,), denoiser.noise_scheduler.config.num_train_timesteps - 1)
    assert torch.equal(denoiser.noise_scheduler.sigmas(last) * 1000, seen["timestep"])
    with torch.no_grad():
        expected = pipe.transformer(**seen | {"return_dict": True}).sample
        ours = denoiser.predict(seen["hidden_states"], last, denoiser.encode_prompts(PROMPTS))
    torch.testing.assert_close(ours, expected)


def test_noise_lies_on_the_line_and_the_target_is_its_direction(denoiser: Any) -> None:
    """A step of size sigma against the target leads back to the picture; sigma runs from 1/T to 1."""
    scheduler = denoiser.noise_scheduler
    latents, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    timesteps = torch.tensor([0, 999])
    sigmas = scheduler.sigmas(timesteps).view(-1, 1, 1, 1)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy - sigmas * denoising_target(scheduler, latents, noise, timesteps), latents)
    torch.testing.assert_close(noisy[1], noise[1])


def test_drawing_from_embeddings_is_drawing_from_prompts(denoiser: Any) -> None:
    sampling = Sampling(steps=2, guidance=3.0)
    by_text = denoiser.generate(PROMPTS, [1, 2], sampling, output="latent")
    by_embedding = denoiser.generate(denoiser.encode_prompts(PROMPTS), [1, 2], sampling, output="latent")
    torch.testing.assert_close(by_embedding, by_text)


def test_pictures_survive_the_autoencoders_shift(denoiser: Any) -> None:
    pixels = torch.zeros(1, 3, 32, 32)
    vae = denoiser.pipeline.vae
    with torch.no_grad():
        expected = (vae.encode(pixels).latent_dist.mode() - 0.1) * vae.config.scaling_factor
        torch.testing.assert_close(denoiser.encode_images(pixels), expected)
        plain = denoiser.pipeline.image_processor.postprocess(
            vae.decode(vae.encode(pixels).latent_dist.mode()).sample, output_type="pil"
        )
    assert denoiser.decode(denoiser.encode_images(pixels))[0].tobytes() == plain[0].tobytes()


def test_slots_hold_embeddings_of_both_clip_encoders(denoiser: Any) -> None:
    word = denoiser.embed_word("cat").detach().requires_grad_()
    assert word.shape[1] == 48 == denoiser.token_embeddings.shape[1]
    slots = denoiser.encode_slots(["a photo of a <*>"], word)
    torch.testing.assert_close(slots.parts, denoiser.encode_prompts(["a photo of a cat"]).parts)


def test_train_load_stack_merge(base: Any, recipe: Any, cli: Cli, tmp_path: Path) -> None:
    file = recipe()
    assert cli("train", file, "--evaluation.metrics", "[drift]").status == 0
    robust = ("--preset", "robust", "--adversary", "{refresh_every: 1, steps: 1, batch_size: 2}")
    assert cli("train", file, "--output", tmp_path / "other", "--training.seed", "1", *robust).status == 0
    run = tmp_path / "run"
    adapter = load_file(run / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("transformer.transformer_blocks.") for name in adapter)
    idle = {name for name, tensor in adapter.items() if "lora_B" in name and not bool(tensor.any())}
    assert idle <= {"transformer.transformer_blocks.1.attn.add_q_proj.lora_B.weight"}, (
        "the last block's prompt is unused"
    )
    assert not list(run.glob("erase-*.safetensors")), "kohya's format has no names for it"
    assert "drift" in json.loads((run / "evaluation.json").read_text())["metrics"]

    assert cli("stack", run, tmp_path / "other", "--output", tmp_path / "both").status == 0
    assert cli("merge", base, tmp_path / "both", "--output", tmp_path / "merged").status == 0
    plain = StableDiffusion3Pipeline.from_pretrained(base, text_encoder_3=None, tokenizer_3=None)
    plain.load_lora_weights(run, adapter_name="a")
    plain.load_lora_weights(tmp_path / "other", adapter_name="b")
    plain.set_adapters(["a", "b"])
    merged = StableDiffusion3Pipeline.from_pretrained(tmp_path / "merged", text_encoder_3=None, tokenizer_3=None)
    drawn = []
    for pipe in (plain, merged):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        drawn.append(
            pipe("a cat", height=32, width=32, num_inference_steps=2, generator=generator, output_type="latent").images
        )
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-4, rtol=1e-4)

    assert cli("publish", run, "--repo", "me/sd3", "--dry_run").status == 0
    card = (run / "hub/README.md").read_text()
    assert "StableDiffusion3Pipeline" in card and "ComfyUI" not in card
    refused(
        cli("convert", run, tmp_path / "k", "--format", "kohya"), "--format = 'kohya': has no names for the weights"
    )
    assert cli("convert", run, tmp_path / "peft", "--format", "peft").status == 0
    assert cli("convert", tmp_path / "peft", tmp_path / "d", "--format", "diffusers").status == 0
    back = load_file(tmp_path / "d/pytorch_lora_weights.safetensors")
    assert back.keys() == adapter.keys() and all(torch.equal(back[name], adapter[name]) for name in back)


def test_without_an_adapter(base: Any, recipe: Any, cli: Cli, tmp_path: Path) -> None:
    file = recipe()
    text = file.read_text().replace("adapter:\n  rank: 2\n  targets: attention\n", "adapter: none\n")
    file.write_text(text)
    assert cli("train", file).status == 0
    trained = SD3Transformer2DModel.from_pretrained(tmp_path / "run/transformer").state_dict()
    before = SD3Transformer2DModel.from_pretrained(base / "transformer").state_dict()
    assert any(not torch.equal(trained[name], before[name]) for name in before)


def test_timesteps_may_be_drawn_as_it_was_trained(recipe: Any, cli: Cli, tmp_path: Path) -> None:
    adapters = []
    for name, more in (
        ("plain", ()),
        ("moved", ("--training.timesteps", "logit_normal", "--training.timestep_shift", 3)),
    ):
        assert cli("train", recipe(), "--output", tmp_path / name, *more).status == 0
        adapters.append(load_file(tmp_path / name / "pytorch_lora_weights.safetensors"))
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_what_a_noise_schedule_is_needed_for_is_refused(recipe: Any, cli: Cli) -> None:
    refused(
        cli("train", recipe(), "--training.min_snr_gamma", "5"),
        "training.min_snr_gamma = 5.0: weighs by a noise schedule", "Omit it",
    )  # fmt: skip
