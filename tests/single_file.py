"""Packing a diffusers folder into a single-file checkpoint with the original (LDM) keys, for tests.

The UNet's numbering is written down from the original architecture (input, middle and output blocks counted through),
apart from the package's own translation.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


FIXED = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def unet_blocks(config: dict[str, Any]) -> dict[str, str]:
    """Count the blocks as the original code builds them: diffusers module -> LDM module."""
    blocks, number, depth = dict(FIXED), 1, len(config["down_block_types"])
    for i, kind in enumerate(config["down_block_types"]):
        for j in range(config["layers_per_block"]):
            blocks[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{number}.0"
            if "CrossAttn" in kind:
                blocks[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if i < depth - 1:
            blocks[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for i, kind in enumerate(config["up_block_types"]):
        for j in range(config["layers_per_block"] + 1):
            blocks[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{number}.0"
            modules = 1
            if "CrossAttn" in kind:
                blocks[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
                modules = 2
            if j == config["layers_per_block"] and i < depth - 1:
                blocks[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number}.{modules}.conv"
            number += 1
    return blocks


def unet_key(key: str, blocks: dict[str, str]) -> str:
    for ours, theirs in blocks.items():
        if key.startswith(ours + "."):
            rest = key[len(ours) + 1 :]
            if "resnets" in ours:
                name, _, leaf = rest.rpartition(".")
                rest = f"{RESNET[name]}.{leaf}"
            return f"model.diffusion_model.{theirs}.{rest}"
    raise KeyError(key)


def vae_key(key: str, depth: int) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{depth - 1 - int(m[1])}.block.", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{depth - 1 - int(m[1])}.upsample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    for ours, theirs in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        key = key.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    return f"first_stage_model.{key}"


def pack(folder: Path, file: Path, dtype: torch.dtype | None = None, metadata: dict[str, str] | None = None) -> Path:
    """Write the UNet, the VAE and the text encoder of a diffusers folder into one file."""
    blocks = unet_blocks(json.loads((folder / "unet/config.json").read_text()))
    depth = len(json.loads((folder / "vae/config.json").read_text())["block_out_channels"])
    checkpoint: dict[str, Tensor] = {}
    for key, tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        checkpoint[unet_key(key, blocks)] = tensor
    for key, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        is_attention = re.search(r"attentions\.0\.to_.*weight", key)
        checkpoint[vae_key(key, depth)] = tensor[:, :, None, None] if is_attention else tensor
    for key, tensor in load_file(folder / "text_encoder/model.safetensors").items():
        checkpoint[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = tensor
    save_file({k: v.to(dtype or v.dtype).contiguous() for k, v in checkpoint.items()}, file, metadata)
    return file
