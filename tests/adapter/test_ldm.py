"""Names in single-file checkpoints, against diffusers' own reader, for the published architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import SD_1_5, SD_2_1, SDXL
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file
from single_file import unet_blocks, unet_key

from erasediff_lora import families
from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, formats
from erasediff_lora.families import ldm
from erasediff_lora.families.slot import Slot

# Numbers of tensors in the published UNets.
CASES = {"sd-1.5": (SD_1_5, 686), "sd-2.1": (SD_2_1, 686), "sdxl": (SDXL, 1680)}


@pytest.fixture(scope="module", params=CASES, ids=str)
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    config, count = CASES[request.param]
    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
    assert len(model.state_dict()) == count
    return model


def numbering(unet: UNet2DConditionModel) -> ldm.UNetNumbering:
    attention = {i for i, kind in enumerate(unet.config["up_block_types"]) if "CrossAttn" in kind}
    return ldm.UNetNumbering(2, frozenset(attention))


def test_every_tensor_is_mapped_once_and_back(unet: UNet2DConditionModel) -> None:
    there = {}
    for key in unet.state_dict():
        path, _, leaf = key.rpartition(".")
        theirs = numbering(unet).to_ldm(path)
        assert theirs is not None, key
        assert numbering(unet).to_diffusers(theirs) == path
        there[key] = f"{ldm.UNET}{theirs}.{leaf}"
    assert len(set(there.values())) == len(there)

    blocks = unet_blocks(unet.config)
    assert there == {key: unet_key(key, blocks) for key in there}

    state = {theirs: key for key, theirs in there.items()}
    converted = convert_ldm_unet_checkpoint(state, dict(unet.config), extract_ema=False)
    assert converted == {key: key for key in there}, "diffusers reads each tensor as the one that it was"


def test_numbering_is_read_off_the_keys(unet: UNet2DConditionModel) -> None:
    blocks = unet_blocks(unet.config)
    keys = [unet_key(key, blocks) for key in unet.state_dict()]
    third = {i for i in numbering(unet).attention_up_blocks if i < len(unet.config["up_block_types"]) - 1}
    assert ldm.UNetNumbering.of(keys) == ldm.UNetNumbering(2, frozenset(third))
    weights = {key.removesuffix(".weight") for key in unet.state_dict() if key.endswith(".weight")}
    found = families.slots(keys)
    assert found.keys() == {f"unet.{path}" for path in weights}
    assert {slot.key for slot in found.values()} == {key for key in keys if key.endswith(".weight")}


def test_kohya_names_of_every_module_are_read_back(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    is_xl = unet.config["cross_attention_dim"] == 2048
    modules = [name for name, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    layers = {f"unet.{name}": LoraLayer(torch.ones(1, 1), torch.ones(1, 1), 1.0) for name in modules}
    origin = Provenance(architecture="stable-diffusion-xl-v1-base" if is_xl else "stable-diffusion-v1")
    (file,) = formats.write(LoraAdapter(layers, origin), tmp_path, "kohya")
    assert formats.read(file).layers.keys() == layers.keys()
    names = {key.split(".")[0].removeprefix("lora_unet_") for key in load_file(file)}
    if is_xl:
        blocks = unet_blocks(unet.config)
        theirs = [unet_key(f"{name}.weight", blocks) for name in modules]
        assert names == {key.removeprefix(ldm.UNET).removesuffix(".weight").replace(".", "_") for key in theirs}
    else:
        assert names == {name.replace(".", "_") for name in modules}


def test_open_clip_projections_share_a_tensor() -> None:
    prefix = "conditioner.embedders.1.model.transformer.resblocks.3."
    keys = [prefix + end for end in ("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "ln_1.weight")]
    keys += [
        prefix + "mlp.c_fc.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    ]
    layer = "text_encoder_2.encoder.layers.3."
    assert families.slots(keys) == {
        layer + "self_attn.q_proj": Slot(keys[0], 0, 3),
        layer + "self_attn.k_proj": Slot(keys[0], 1, 3),
        layer + "self_attn.v_proj": Slot(keys[0], 2, 3),
        layer + "self_attn.out_proj": Slot(keys[2]),
        layer + "mlp.fc1": Slot(keys[4]),
        "text_encoder.encoder.layers.0.mlp.fc1": Slot(keys[5]),
    }
