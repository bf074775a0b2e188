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


OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
OPEN_CLIP_OUTER = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def open_clip(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder as OpenCLIP names it: queries, keys and values in one, the projection from the other side."""
    ours = {key.removeprefix("text_model."): tensor for key, tensor in ours.items()}
    theirs = {OPEN_CLIP_OUTER[key]: tensor for key, tensor in ours.items() if key in OPEN_CLIP_OUTER}
    if "text_projection.weight" in ours:
        theirs["text_projection"] = ours["text_projection.weight"].T
    for key, tensor in ours.items():
        if (match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)) is None:
            continue
        block, inside, leaf = f"transformer.resblocks.{match[1]}", match[2], match[3]
        if inside in OPEN_CLIP:
            theirs[f"{block}.{OPEN_CLIP[inside]}.{leaf}"] = tensor
        elif inside == "self_attn.q_proj":
            parts = [ours[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            theirs[f"{block}.attn.in_proj_{leaf}"] = torch.cat(parts)
    return theirs


def pack(
    folder: Path,
    file: Path,
    dtype: torch.dtype | None = None,
    metadata: dict[str, str] | None = None,
    *,
    is_version_2: bool = False,
) -> Path:
    """Write the UNet, the VAE and the text encoders of a diffusers folder into one file: of version 1, 2 or XL."""
    blocks = unet_blocks(json.loads((folder / "unet/config.json").read_text()))
    checkpoint: dict[str, Tensor] = vae(folder)
    for key, tensor in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        checkpoint[unet_key(key, blocks)] = tensor
    is_xl = (folder / "text_encoder_2").is_dir()
    first, second = ("conditioner.embedders.0.", "conditioner.embedders.1.") if is_xl else ("cond_stage_model.", "")
    text = load_file(folder / "text_encoder/model.safetensors")
    if is_version_2:
        checkpoint |= {f"{first}model.{key}": tensor for key, tensor in open_clip(text).items()}
    else:
        names = {key: f"{first}transformer.text_model.{key.removeprefix('text_model.')}" for key in text}
        checkpoint |= {names[key]: tensor for key, tensor in text.items()}
    if is_xl:
        text = load_file(folder / "text_encoder_2/model.safetensors")
        checkpoint |= {f"{second}model.{key}": tensor for key, tensor in open_clip(text).items()}
    save_file({k: v.to(dtype or v.dtype).contiguous() for k, v in checkpoint.items()}, file, metadata)
    return file


def vae(folder: Path) -> dict[str, Tensor]:
    """The autoencoder of a diffusers folder by the authors' names."""
    depth = len(json.loads((folder / "vae/config.json").read_text())["block_out_channels"])
    theirs = {}
    for key, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        is_attention = re.search(r"attentions\.0\.to_.*weight", key)
        theirs[vae_key(key, depth)] = tensor[:, :, None, None] if is_attention else tensor
    return theirs


NETWORK = "model.diffusion_model."
SD3_OUTER = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
}
SD3_INNER = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
}
SD3_FUSED = {"x_block": ("to_q", "to_k", "to_v"), "context_block": ("add_q_proj", "add_k_proj", "add_v_proj")}


def swapped(tensor: Tensor) -> Tensor:
    """The authors' last layers shift first and then scale, diffusers' the other way round."""
    return torch.cat(tensor.chunk(2)[::-1])


def pack_sd3(folder: Path, file: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The transformer and both CLIP encoders of a folder as the authors' single files name them."""
    ours = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    count = 1 + max(int(key.split(".")[1]) for key in ours if key.startswith("transformer_blocks."))
    theirs: dict[str, Tensor] = {"pos_embed": ours["pos_embed.pos_embed"]}
    for leaf in ("weight", "bias"):
        theirs |= {f"{new}.{leaf}": ours[f"{old}.{leaf}"] for old, new in SD3_OUTER.items()}
        theirs[f"final_layer.adaLN_modulation.1.{leaf}"] = swapped(ours[f"norm_out.linear.{leaf}"])
        for index in range(count):
            for old, new in SD3_INNER.items():
                tensor = ours.get(f"transformer_blocks.{index}.{old}.{leaf}")
                if tensor is not None:
                    is_last = index == count - 1 and old == "norm1_context.linear"
                    theirs[f"joint_blocks.{index}.{new}.{leaf}"] = swapped(tensor) if is_last else tensor
            for block, names in SD3_FUSED.items():
                parts = [ours[f"transformer_blocks.{index}.attn.{name}.{leaf}"] for name in names]
                theirs[f"joint_blocks.{index}.{block}.attn.qkv.{leaf}"] = torch.cat(parts)
    whole = {NETWORK + key: tensor for key, tensor in theirs.items()}
    for component, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        for key, tensor in load_file(folder / component / "model.safetensors").items():
            path = key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}"
            whole[f"text_encoders.{name}.transformer.{path}"] = tensor
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in whole.items()}, file)
    return file
