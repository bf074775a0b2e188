"""The transformer families as tests see them, and what their pipelines are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from diffusers import Flux2KleinPipeline, FluxPipeline, Lumina2Pipeline, QwenImagePipeline, ZImagePipeline
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_lumina2_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from tiny_transformers import (
    tiny_flux_2_klein_pipeline,
    tiny_flux_pipeline,
    tiny_lumina_2_pipeline,
    tiny_qwen_image_pipeline,
    tiny_z_image_pipeline,
)
from torch import Tensor

from erasediff_lora.data.noising import denoising_target
from erasediff_lora.objectives.base import mean_squared_error
from erasediff_lora.recipe import Sampling

PROMPTS = ["a photo of a cat", "a dog"]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
ADAPTER = "pytorch_lora_weights.safetensors"
SIDE = 32


@dataclass(frozen=True)
class Case:
    """A family.

    Attributes:
        family: Its name in the registry.
        pipeline: Of diffusers.
        make: A tiny one.
        latents: Channels.
        license: What the card must name.
        fused: A weight of kohya's file that holds several of ours; None: the family is not fused there.
        to_diffusers: diffusers' own translation of the authors' names.
        options: For the pipeline, besides those that all take.
        patch: Pixels along the side of a latent.
    """

    family: str
    pipeline: Any
    make: Callable[[], Any]
    latents: int
    license: str
    fused: str | None
    to_diffusers: Callable[..., dict[str, Tensor]] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    patch: int = 8


def flux_to_diffusers(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' translation, which knows one width: its shares are taken of the tiny one."""

    def split(tensor: Tensor, sizes: tuple[int, ...], dim: int) -> Any:
        return tensor.split([size * tensor.shape[dim] // sum(sizes) for size in sizes], dim)

    with patch.object(torch, "split", split):
        translated: dict[str, Tensor] = convert_flux_transformer_checkpoint_to_diffusers(dict(checkpoint))
    return translated


def flux_2_klein_to_diffusers(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' translation, which expects names of the transformer alone."""
    bare = {key.removeprefix("model.diffusion_model."): tensor for key, tensor in checkpoint.items()}
    translated: dict[str, Tensor] = convert_flux2_transformer_checkpoint_to_diffusers(bare)
    return translated


def lumina_2_to_diffusers(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' translation, which takes the published size's rows of queries and keys for granted."""
    split: dict[str, Tensor] = {}
    for name, tensor in checkpoint.items():
        if name.endswith("attention.qkv.weight"):
            parts = tensor.split([3 * len(tensor) // 5, len(tensor) // 5, len(tensor) // 5])
            split |= {name.replace("qkv", to): part for to, part in zip(("to_q", "to_k", "to_v"), parts, strict=True)}
        else:
            split[name] = tensor
    return convert_lumina2_to_diffusers(split)


CASES = {
    case.family: case
    for case in (
        Case(
            family="flux",
            pipeline=FluxPipeline,
            make=tiny_flux_pipeline,
            latents=4,
            license="flux-1-dev-non-commercial-license",
            fused="lora_unet_double_blocks_0_img_attn_qkv",
            to_diffusers=flux_to_diffusers,
        ),
        Case(
            family="flux_2_klein",
            pipeline=Flux2KleinPipeline,
            make=tiny_flux_2_klein_pipeline,
            latents=16,
            license="apache-2.0",
            fused="lora_unet_double_blocks_0_img_attn_qkv",
            to_diffusers=flux_2_klein_to_diffusers,
            patch=16,
        ),
        Case(
            family="z_image",
            pipeline=ZImagePipeline,
            make=tiny_z_image_pipeline,
            latents=4,
            license="apache-2.0",
            fused="lora_unet_layers_0_attention_qkv",
            to_diffusers=convert_z_image_transformer_checkpoint_to_diffusers,
        ),
        Case(
            family="qwen_image",
            pipeline=QwenImagePipeline,
            make=tiny_qwen_image_pipeline,
            latents=4,
            license="apache-2.0",
            fused=None,
            to_diffusers=lambda checkpoint: checkpoint,
        ),
        Case(
            family="lumina_2",
            pipeline=Lumina2Pipeline,
            make=tiny_lumina_2_pipeline,
            latents=4,
            license="apache-2.0",
            fused="lora_unet_layers_0_attention_qkv",
            to_diffusers=lumina_2_to_diffusers,
        ),
    )
}


def draws_as_the_pipeline(case: Case, denoiser: Any, guidance: float, size: Any, pack: Any, shown: Any = None) -> None:
    """Equal to the last bit, given what the pipeline takes of noise (`pack`) and gives of latents (`shown`, or so)."""
    width, height = size
    shape = (2, case.latents, height // case.patch, width // case.patch)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    arguments = {"width": width, "height": height, "num_inference_steps": 3, "output_type": "latent", **case.options}
    if "max_sequence_length" in denoiser._given(PROMPTS):
        arguments["max_sequence_length"] = denoiser.text_tokens
    if "negative_prompt" in denoiser._given(PROMPTS):
        arguments["negative_prompt"] = [""] * 2
    guided = denoiser.guided_by(guidance)
    theirs = denoiser.pipeline(prompt=list(PROMPTS), latents=pack(noise), **guided, **arguments).images
    ours = denoiser.sample(noise, denoiser.encode_prompts(PROMPTS), Sampling(steps=3, guidance=guidance))
    assert torch.equal((shown or pack)(ours), theirs)
    assert float((ours - noise).abs().max()) > 0.01
    again = denoiser.generate(PROMPTS, [1, 2], Sampling(steps=2, guidance=guidance), output="latent", size=size)
    assert again.shape == noise.shape
    encoded = denoiser.encode_prompts(PROMPTS)
    by_embedding = denoiser.generate(encoded, [1, 2], Sampling(steps=2, guidance=guidance), output="latent", size=size)
    assert torch.equal(again, by_embedding)


def has_the_loss_of(case: Case, denoiser: Any, predicted: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The loss of diffusers' example: of the velocity, without weights.

    Args:
        case: The family.
        denoiser: The base.
        predicted: What the example makes of x_t (2, C, 8, 4) and σ (2,), told "a photo of a cat" and "a dog".
    """
    latents, noise = torch.randn(2, 2, case.latents, 8, 4, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([100.0, 900.0])
    sigmas = timesteps / 1000
    noisy = (1.0 - sigmas.view(-1, 1, 1, 1)) * latents + sigmas.view(-1, 1, 1, 1) * noise
    with torch.no_grad():
        found = predicted(noisy, sigmas)
        theirs = ((found.float() - (noise - latents).float()) ** 2).reshape(2, -1).mean(1).mean()
        scheduler, ours = denoiser.noise_scheduler, timesteps.long() - 1
        prediction = denoiser.predict(scheduler.add_noise(latents, noise, ours), ours, denoiser.encode_prompts(PROMPTS))
    loss = mean_squared_error(prediction, denoising_target(scheduler, latents, noise, ours))
    torch.testing.assert_close(loss, theirs, rtol=0, atol=1e-6)
