"""A single-file checkpoint with the original (LDM) keys is the same base as its diffusers folder."""

from __future__ import annotations

import re

import torch
from safetensors.torch import load_file, save_file

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_key(key: str) -> str:
    for ours, theirs in UNET.items():
        if key.startswith(ours + "."):
            rest = key[len(ours) + 1 :]
            if "resnets" in ours:
                name, _, leaf = rest.rpartition(".")
                rest = f"{RESNET[name]}.{leaf}"
            return f"model.diffusion_model.{theirs}.{rest}"
    raise KeyError(key)


def vae_key(key: str) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block.", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{3 - int(m[1])}.upsample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
    for ours, theirs in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        key = key.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    return f"first_stage_model.{key}"


def test_single_file_trains_the_same_adapter_as_the_folder(tiny_base, recipe_file, cli, tmp_path) -> None:
    checkpoint = {unet_key(k): v for k, v in load_file(tiny_base / "unet/diffusion_pytorch_model.safetensors").items()}
    for key, tensor in load_file(tiny_base / "vae/diffusion_pytorch_model.safetensors").items():
        is_attention = re.search(r"attentions\.0\.to_.*weight", key)
        checkpoint[vae_key(key)] = tensor[:, :, None, None] if is_attention else tensor
    for key, tensor in load_file(tiny_base / "text_encoder/model.safetensors").items():
        checkpoint[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = tensor
    file = tmp_path / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in checkpoint.items()}, file)

    result = cli("train", recipe_file(), "--model.base", file, "--model.config", tiny_base)
    assert result.status == 0, result.err
    from_file = load_file(tmp_path / "run/pytorch_lora_weights.safetensors")
    assert cli("train", recipe_file(), "--overwrite").status == 0
    from_folder = load_file(tmp_path / "run/pytorch_lora_weights.safetensors")
    assert from_file.keys() == from_folder.keys()
    for key, tensor in from_folder.items():
        assert torch.equal(from_file[key], tensor), key
