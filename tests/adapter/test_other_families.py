"""Files for models that are not ours, or that do not tell: refused with what they look like, or asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import Cli
from huggingface_hub import ModelCard
from refusals import refused
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, formats
from erasediff_lora.families.names import sizes
from erasediff_lora.registry import FAMILIES

V1, V2, XL, V3 = "stable-diffusion-v1", "stable-diffusion-v2-512", "stable-diffusion-xl-v1-base", "stable-diffusion-3"
QUERY = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def kohya(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {
        f"{name}.lora_down.weight": torch.ones(4, columns),
        f"{name}.lora_up.weight": torch.ones(rows, 4),
        f"{name}.alpha": torch.tensor(4.0),
    }


def peft(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(4, columns), f"{name}.lora_B.weight": torch.ones(rows, 4)}


OTHERS: dict[str, tuple[dict[str, Tensor], str]] = {
    "Sana": (kohya("lora_unet_transformer_blocks_0_ff_conv_inverted", 64, 64), "Sana"),
    "Wan": (peft("diffusion_model.blocks.0.self_attn.q", 64, 64), "Wan"),
    "Stable Cascade": (kohya("lora_prior_unet_down_blocks_0_1_to_q", 64, 64), "Stable Cascade"),
    "a ControlNet": (kohya("lora_controlnet_down_blocks_0_attn", 64, 64), "a ControlNet"),
    "a language model": (peft("base_model.model.model.layers.0.self_attn.q_proj", 64, 64), "a language model"),
    "PixArt": (peft("transformer.transformer_blocks.0.attn1.to_q", 64, 64), "PixArt or LTX"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_for_another_family_is_refused_by_its_name(name: str, tmp_path: Path, cli: Cli) -> None:
    tensors, family = OTHERS[name]
    file = tmp_path / "a.safetensors"
    save_file(tensors, file)
    first = next(key for key in tensors if "down" in key or "lora_A" in key)
    for verb in (["inspect", file], ["convert", file, tmp_path / "out", "--format", "diffusers"]):
        refused(cli(*verb), f"It looks like a file for {family};", first, V1)
    assert not (tmp_path / "out").exists()


def test_a_family_that_is_here_is_no_other_one(tmp_path: Path, cli: Cli) -> None:
    """Lumina, of a width that no published model has: asked for by its own name, and told from Z-Image by its rows."""
    file = tmp_path / "a.safetensors"
    save_file(kohya("lora_unet_layers_3_attention_qkv", 80, 48), file)
    assert "lumina-2" in cli("inspect", file).out
    save_file(kohya("lora_unet_layers_3_attention_qkv", 96, 32), file)
    assert "z-image" in cli("inspect", file).out


@pytest.mark.parametrize(
    ("field", "value", "family"),
    [
        ("modelspec.architecture", "sana-1600m/lora", "Sana"),
    ],
)
def test_text_encoders_alone_are_told_by_the_header(
    field: str, value: str, family: str, tmp_path: Path, cli: Cli
) -> None:
    """Others have Stable Diffusion's CLIP too."""
    file = tmp_path / "a.safetensors"
    tensors = kohya("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 768, 768)
    save_file(tensors, file, {field: value})
    refused(cli("inspect", file), f"It looks like a file for {family};")
    save_file(tensors, file)
    assert XL in cli("inspect", file).out


def test_names_of_two_families_in_one_file(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "a.safetensors"
    mixed = kohya("lora_te_text_model_encoder_layers_0_mlp_fc1", 3072, 768)
    mixed |= kohya("lora_te1_text_model_encoder_layers_0_mlp_fc2", 768, 3072)
    save_file(mixed, file)
    refused(cli("inspect", file), "has 3 tensors of modules that", "does not have")
    unet = kohya("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1280, 768)
    save_file(unet | kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", 5120, 1280), file)
    refused(cli("inspect", file), "has 3 tensors that do not fit stable-diffusion-xl-v1-base", "[1280, 2048]")


AMBIGUOUS: dict[str, tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]] = {
    "attn1 of two versions": (peft(QUERY.replace("mid_block", "down_blocks.0"), 320, 320), {}, (V1, V2)),
    "CLIP": (peft("text_encoder.text_model.encoder.layers.0.mlp.fc1", 3072, 768), {}, (V1, XL, V3)),
    "a small model": (kohya("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", 32, 32), {}, (V1, XL)),
    "version 2": (peft(QUERY.replace("attn1.to_q", "attn2.to_k"), 1280, 1024), {}, (V2, "stable-diffusion-v2-768-v")),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_cannot_be_told_is_asked_for(name: str, tmp_path: Path, cli: Cli) -> None:
    tensors, header, left = AMBIGUOUS[name]
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, header)
    shown = cli("inspect", file)
    assert shown.status == 0 and "say which with --family" in shown.out
    assert all(architecture in shown.out for architecture in left)
    convert = ("convert", file, tmp_path / "k.safetensors", "--format", "kohya")
    refused(cli(*convert), "--family = None: must be given", *left)
    assert not (tmp_path / "k.safetensors").exists()
    assert cli(*convert, "--family", left[0]).status == 0
    with safe_open(tmp_path / "k.safetensors", "pt") as stored:
        assert stored.metadata()["modelspec.architecture"] == f"{left[0]}/lora"
        assert stored.metadata()["erasediff.architecture"] == left[0]


def test_the_user_is_not_believed_against_the_layers(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "a.safetensors"
    save_file(peft(QUERY.replace("attn1.to_q", "attn2.to_k"), 1280, 2048), file)
    refused(
        cli("inspect", file, "--family", V1), f"is no adapter for {V1}: 2 tensors", f"fit {XL}.", f"Say --family {XL}"
    )
    refused(
        cli("inspect", file, "--family", "stable_difusion"), "--family = 'stable_difusion': is unknown. Did you mean"
    )
    for said in (XL, "stable_diffusion_xl", "sdxl_base_v1-0"):
        assert XL in cli("inspect", file, "--family", said).out
    save_file(peft(QUERY, 5, 7), file)
    refused(cli("inspect", file, "--family", V3), "2 tensors of modules that", "unet.mid_block")


def test_a_header_that_is_wrong_is_said_to_be(tmp_path: Path, cli: Cli) -> None:
    """Self attention alone, with the header that every such file of Stable Diffusion XL once got."""
    deep = "unet.down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q"
    file = tmp_path / "a.safetensors"
    save_file(peft(deep, 1280, 1280), file, {"ss_base_model_version": "sd_v1", "erasediff.architecture": V1})
    result = cli("convert", file, tmp_path / "k.safetensors", "--format", "kohya")
    assert result.status == 0, result.err
    assert f"says in its header that it is for {V1}, but its layers are those of {XL}" in result.err
    with safe_open(tmp_path / "k.safetensors", "pt") as stored:
        assert stored.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
        assert any(
            key.startswith("lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q.")
            for key in stored.keys()  # noqa: SIM118
        )


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3"])
def test_layers_of_another_shape_are_refused_with_the_right_one(family: str, tmp_path: Path, cli: Cli) -> None:
    """One wrong width among right ones, and a header that knows the family."""
    size = sizes(FAMILIES[family])[0]
    network = [
        name for name, shape in size.shapes.items() if len(shape) == 2 and name.startswith(FAMILIES[family].component)
    ]
    good: dict[str, Tensor] = {}
    for name in network[5:25]:
        good |= peft(name, *size.shapes[name])
    wrong = network[30]
    rows, columns = size.shapes[wrong]
    save_file(good | peft(wrong, rows + 8, columns), tmp_path / "a.safetensors")
    shown = cli("inspect", tmp_path / "a.safetensors")
    assert shown.status == 2 or "say which with --family" in shown.out  # a base of another size is possible
    assert size.architecture.id in shown.out + shown.err


@pytest.mark.parametrize(
    ("module", "architecture", "license"),
    [
        (
            "transformer.transformer_blocks.0.attn.to_q",
            V3,
            {"license": "other", "license_name": "stabilityai-ai-community"},
        ),
        ("unet.mid_block.attentions.0.to_q", "ddpm-class-conditional", {}),
        (QUERY, None, {}),
    ],
)
def test_the_card_names_the_familys_licence_or_none(
    module: str, architecture: str | None, license: Any, tmp_path: Path, cli: Cli
) -> None:
    layer = LoraLayer(
        torch.ones(2, 1536 if architecture == V3 else 64), torch.ones(1536 if architecture == V3 else 64, 2), 2.0
    )
    formats.write(LoraAdapter({module: layer}, Provenance(concepts=("cat",))), tmp_path, "diffusers")
    shown = cli("inspect", tmp_path)
    assert shown.status == 0
    result = cli("publish", tmp_path, "--repo", "me/x", "--dry_run", "--base_model", "owner/base")
    assert result.status == 0, result.err
    data = ModelCard.load(tmp_path / "hub/README.md").data.to_dict()
    assert {key: data.get(key) for key in license} == license
    if not license:
        assert "license" not in data
        assert "the licence of the base is unknown, so the card names none" in result.err
