"""Families: what is known of each, and which one something is taken for."""

from __future__ import annotations

from pathlib import Path
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


def test_a_family_is_two_short_files() -> None:
    """What is known of it without torch, and what runs it."""
    root = Path(families.__file__).parent.parent
    for name in FAMILIES:
        for room in ("families", "denoisers"):
            lines = len((root / room / f"{name}.py").read_text().splitlines())
            assert lines <= LONGEST.get((room, name), 200), (room, name, lines)


LONGEST = {("denoisers", "class_conditional"): 320}
"""It has no pipeline of diffusers, and so draws by itself."""
V1, V2, XL, V3 = "stable-diffusion-v1", "stable-diffusion-v2", "stable-diffusion-xl-v1-base", "stable-diffusion-3"
FLUX = ("flux-1-dev", "flux-1-schnell")
V2S = (f"{V2}-512", f"{V2}-768-v")
SELF = ATTENTION.replace("attn2.to_k", "attn1.to_q")
DEEP = "unet.down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q"


@pytest.mark.parametrize(
    ("layers", "header", "architectures"),
    [
        ({ATTENTION: (320, 768)}, {}, (V1,)),
        ({ATTENTION: (320, 1024)}, {}, V2S),
        ({ATTENTION: (320, 1024)}, {"ss_base_model_version": "sd_v2_v"}, V2S[1:]),
        ({ATTENTION: (320, 1024)}, {"ss_base_model_version": "sd_v2"}, V2S[:1]),
        ({SELF: (320, 320)}, {}, (V1, *V2S)),
        ({SELF: (320, 320)}, {"modelspec.architecture": f"{V1}/lora"}, (V1,)),
        ({DEEP: (1280, 1280)}, {}, (XL,)),
        ({DEEP: (1280, 1280)}, {"ss_base_model_version": "sd_v1"}, (XL,)),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768)}, {}, (XL, *FLUX)),
        (
            {"lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768)},
            {"ss_base_model_version": "sdxl_base_v1-0"},
            (XL,),
        ),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1": (3072, 768)}, {}, (V1,)),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768), ATTENTION: (320, 768)}, {}, (V1,)),
        ({"text_encoder.encoder.layers.0.mlp.fc1": (3072, 768)}, {}, (V1, XL, V3, *FLUX)),
        ({"text_encoder_2.encoder.layers.0.mlp.fc1": (5120, 1280)}, {}, (XL, V3)),
        ({"transformer.transformer_blocks.0.attn.to_q": (1536, 1536)}, {}, (V3,)),
        ({"base_model.model.context_embedder": (1536, 4096), "base_model.model.proj_out": (64, 1536)}, {}, (V3,)),
        ({"transformer.transformer_blocks.0.attn.to_q": (3072, 3072)}, {}, (*FLUX, "flux-2-klein-4b", "qwen-image")),
        ({"diffusion_model.single_blocks.19.linear1": (27648, 3072)}, {}, ("flux-2-klein-4b",)),
        ({"transformer.single_transformer_blocks.23.attn.to_out": (4096, 16384)}, {}, ("flux-2-klein-9b",)),
        ({"transformer.transformer_blocks.59.attn.to_q": (3072, 3072)}, {}, ("qwen-image",)),
        ({"lora_unet_layers_29_attention_qkv": (11520, 3840)}, {}, ("z-image",)),
        ({"lora_unet_layers_25_attention_qkv": (3840, 2304)}, {}, ("lumina-2",)),
        ({"transformer.context_refiner.1.attn.to_k": (768, 2304)}, {}, ("lumina-2",)),
        ({"transformer.proj_out": (64, 3072)}, {"modelspec.architecture": "flux-1-dev/lora"}, FLUX[:1]),
        ({"diffusion_model.single_blocks.37.linear1": (21504, 3072)}, {}, FLUX),
        ({"lora_unet_guidance_in_in_layer": (3072, 256)}, {"ss_base_model_version": "flux1"}, FLUX[:1]),
        ({"unet.conv_in": (320, 4, 3, 3)}, {}, (V1, *V2S, XL)),
        ({"unet.conv_in": (320, 9, 3, 3)}, {}, (V1, *V2S, XL)),
        ({"unet.mid_block.attentions.0.to_q": (64, 64)}, {}, ("ddpm-class-conditional",)),
    ],
)
def test_layers_names_and_header_tell_the_architecture(layers: Any, header: Any, architectures: Any) -> None:
    found = families.recognise(layers, header)
    assert sorted(found.candidates) == sorted(architectures)
    assert found.architecture == (architectures[0] if len(architectures) == 1 else None)


def test_components_and_pipelines() -> None:
    assert families.networks() == ("unet", "transformer")
    assert families.components() == ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    assert families.of_pipeline("StableDiffusion3Pipeline") == "stable_diffusion_3"
    assert families.of_pipeline("PixArtAlphaPipeline") is None
    assert families.of_architecture("pixart") is None


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
