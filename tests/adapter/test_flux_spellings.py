"""Adapters of FLUX as XLabs, USO and OneTrainer spell them, against diffusers' own reading of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from fixtures import Cli
from refusals import refused
from safetensors.torch import load_file, save_file
from torch import Tensor

from erasediff_lora.adapter import formats

WIDTH, RANK = 3072, 2
XLABS = {
    "double_blocks.3.processor.qkv_lora1": (3, 1),
    "double_blocks.3.processor.qkv_lora2": (3, 1),
    "double_blocks.3.processor.proj_lora1": (1, 1),
    "double_blocks.3.processor.proj_lora2": (1, 1),
    "single_blocks.37.processor.qkv_lora": (3, 1),
    "single_blocks.37.processor.proj_lora": (1, 5),
}
"""Name -> rows and columns in widths."""
OMI = {
    "transformer.double_blocks.18.img_attn.qkv.1": "transformer.transformer_blocks.18.attn.to_k",
    "transformer.double_blocks.0.txt_attn.qkv.2": "transformer.transformer_blocks.0.attn.add_v_proj",
    "transformer.single_blocks.5.linear1.0": "transformer.single_transformer_blocks.5.attn.to_q",
    "transformer.single_blocks.5.linear1.3": "transformer.single_transformer_blocks.5.proj_mlp",
    "clip_l.text_model.encoder.layers.11.mlp.fc1": "text_encoder.encoder.layers.11.mlp.fc1",
    "t5.encoder.block.0.layer.0.SelfAttention.q": "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
}
SHAPES = {"proj_mlp": (4 * WIDTH, WIDTH), "fc1": (3072, 768), "q": (4096, 4096)}


def factors(name: str, rows: int, columns: int, ends: tuple[str, str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(name))
    return {
        f"{name}{ends[0]}.weight": torch.randn(RANK, columns, generator=generator),
        f"{name}{ends[1]}.weight": torch.randn(rows, RANK, generator=generator),
    }


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_xlabs(prefix: str, tmp_path: Path, cli: Cli) -> None:
    tensors: dict[str, Tensor] = {}
    for name, (rows, columns) in XLABS.items():
        tensors |= factors(prefix + name, rows * WIDTH, columns * WIDTH, (".down", ".up"))
    save_file(tensors, tmp_path / "a.safetensors")
    result = cli("convert", tmp_path / "a.safetensors", tmp_path / "out.safetensors", "--format", "diffusers")
    assert result.status == 0, result.err
    ours: Any = load_file(tmp_path / "out.safetensors")
    theirs = FluxPipeline.lora_state_dict({name.removeprefix(prefix): value for name, value in tensors.items()})
    assert ours.keys() == theirs.keys() and len(ours) == 24
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_the_parts_of_fused_weights_by_number(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for theirs, ours in OMI.items():
        tensors |= factors(theirs, *SHAPES.get(ours.rpartition(".")[2], (WIDTH, WIDTH)), (".lora_down", ".lora_up"))
    save_file(tensors, tmp_path / "a.safetensors")
    layers = formats.read(tmp_path / "a.safetensors").layers
    assert layers.keys() == set(OMI.values())
    for theirs, ours in OMI.items():
        assert torch.equal(layers[ours].up, tensors[f"{theirs}.lora_up.weight"]), theirs
        assert torch.equal(layers[ours].down, tensors[f"{theirs}.lora_down.weight"]), theirs


def test_parts_of_stable_diffusion_3_by_number(tmp_path: Path) -> None:
    names = {
        "transformer.joint_blocks.7.x_block.attn.qkv.1": "transformer.transformer_blocks.7.attn.to_k",
        "transformer.joint_blocks.0.context_block.attn.qkv.2": "transformer.transformer_blocks.0.attn.add_v_proj",
    }
    tensors: dict[str, Tensor] = {}
    for theirs in names:
        tensors |= factors(theirs, 1536, 1536, (".lora_down", ".lora_up"))
    save_file(tensors, tmp_path / "a.safetensors")
    layers = formats.read(tmp_path / "a.safetensors").layers
    assert {ours: layers[ours].up.tolist() for ours in layers} == {
        ours: tensors[f"{theirs}.lora_up.weight"].tolist() for theirs, ours in names.items()
    }


def test_families_with_blocks_of_flux_are_told_by_the_header(tmp_path: Path, cli: Cli) -> None:
    tensors = factors("lora_unet_double_blocks_0_img_attn_proj", WIDTH, WIDTH, (".lora_down", ".lora_up"))
    save_file(tensors, tmp_path / "a.safetensors", {"modelspec.architecture": "chroma/lora"})
    refused(cli("inspect", tmp_path / "a.safetensors"), "It looks like a file for Chroma")
    assert cli("inspect", tmp_path / "a.safetensors", "--family", "flux-1-dev").status == 0
