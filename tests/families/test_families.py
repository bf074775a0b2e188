"""Families: what is known of each, and which one something is taken for."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from erasediff_lora import denoisers, families
from erasediff_lora.registry import FAMILIES

ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_description_agrees_with_the_class_that_it_names(name: str) -> None:
    family = FAMILIES[name]
    denoiser = denoisers.class_of(family.denoiser)
    assert denoiser.component == family.component
    assert getattr(denoiser, "encoders", ()) == family.encoders
    assert family.in_diffusers == hasattr(diffusers, family.pipeline)
    if family.in_diffusers:
        assert denoiser.pipeline_class.__name__ == family.pipeline


@pytest.mark.parametrize(
    ("layers", "architecture"),
    [
        ({ATTENTION: (320, 768)}, "stable-diffusion-v1"),
        ({ATTENTION: (320, 1024)}, "stable-diffusion-v2-512"),
        ({ATTENTION: (320, 2048)}, "stable-diffusion-xl-v1-base"),
        ({"text_encoder_2.encoder.layers.0.mlp.fc1": (5, 5)}, "stable-diffusion-xl-v1-base"),
        ({"transformer.transformer_blocks.0.attn.to_q": (5, 5)}, "stable-diffusion-3"),
        ({"unet.conv_in": (320, 4, 3, 3)}, families.FALLBACK),
    ],
)
def test_layers_tell_their_architecture(layers: Any, architecture: Any) -> None:
    assert families.recognise(layers) == architecture


def test_components_and_pipelines() -> None:
    assert families.networks() == ("unet", "transformer")
    assert families.components() == ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    assert families.of_pipeline("StableDiffusion3Pipeline") == "stable_diffusion_3"
    assert families.of_pipeline("FluxPipeline") is None
    assert families.of_architecture("flux-1-dev") is None


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl"])
def test_names_in_kohya_files_go_there_and_back(name: str) -> None:
    names = FAMILIES[name].kohya
    for module in (
        "unet.conv_in",
        "unet.time_embedding.linear_1",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "unet.mid_block.resnets.0.time_emb_proj",
        "unet.up_blocks.1.upsamplers.0.conv",
        "text_encoder.encoder.layers.0.self_attn.out_proj",
    ):
        assert names.module(names.name(module)) == module
