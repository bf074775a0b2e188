"""The kohya file, by the published rule and by the programs that read it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import pipeline, random_adapter
from architectures import SDXL
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from fixtures import Cli
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_file import pack, unet_blocks, unet_key
from torch import Tensor

from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, formats
from erasediff_lora.adapter.scaling import beside_factors
from erasediff_lora.registry import FORMATS

PROVENANCE = Provenance(
    base_model="owner/base",
    base_fingerprint="f" * 64,
    architecture="stable-diffusion-v1",
    prediction_type="epsilon",
    resolution=512,
    concepts=("Van Gogh's style", "cat"),
    objective="erasediff",
    recipe_sha256="a" * 64,
    version="0.1.0",
)


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as stored:
        return dict(stored.metadata())


def by_the_rule(file: Path, weights: dict[str, Tensor], key_of: dict[str, str]) -> dict[str, Tensor]:
    """W + alpha / rank · up @ down, restated from sd-scripts: linear, 1×1 and 3×3 convolutions each its own way."""
    lora, merged = load_file(file), dict(weights)
    for name in {key.split(".")[0] for key in lora}:
        up, down = lora[f"{name}.lora_up.weight"].double(), lora[f"{name}.lora_down.weight"].double()
        scale = float(lora[f"{name}.alpha"]) / down.shape[0]
        weight = merged[key_of[name]].double()
        if weight.ndim == 2:
            delta = up @ down
        elif down.shape[2:] == (1, 1):
            delta = (up[:, :, 0, 0] @ down[:, :, 0, 0])[:, :, None, None]
        else:
            delta = torch.nn.functional.conv2d(down.permute(1, 0, 2, 3), up).permute(1, 0, 2, 3)
        merged[key_of[name]] = weight + scale * delta
    return merged


@pytest.mark.parametrize("alpha", [4.0, 2.5])
def test_published_rule_on_raw_ldm_weights_equals_our_merge(
    alpha: float, tiny_base: Path, tmp_path: Path, cli: Cli
) -> None:
    model = pack(tiny_base, tmp_path / "model.safetensors")
    adapter = random_adapter(tiny_base, "attention_feed_forward_convolutions", alpha)
    (file,) = formats.write(adapter, tmp_path / "lora.safetensors", "kohya")
    blocks = unet_blocks(json.loads((tiny_base / "unet/config.json").read_text()))
    keys = load_file(tiny_base / "unet/diffusion_pytorch_model.safetensors")
    key_of = {
        "lora_unet_" + key.removesuffix(".weight").replace(".", "_"): unet_key(key, blocks)
        for key in keys
        if key.endswith(".weight")
    }
    expected = by_the_rule(file, load_file(model), key_of)
    kinds = {tuple(expected[key_of[name.split(".")[0]]].shape[2:]) for name in load_file(file)}
    assert kinds == {(), (1, 1), (3, 3)}

    result = cli("merge", model, file, "--output", tmp_path / "merged.safetensors")
    assert result.status == 0, result.err
    merged = load_file(tmp_path / "merged.safetensors")
    assert merged.keys() == expected.keys()
    for key, tensor in expected.items():
        assert float((merged[key] - tensor).abs().max()) <= 1e-6 * float(tensor.abs().max()), key


def test_the_name_of_a_file_fits_the_disk() -> None:
    """Of letters that take four bytes each there is room for fewer."""
    for letter in ("a", "é", "猫", "\U00020000"):
        assert 60 < len(f"{Provenance(concepts=(letter * 300,)).title}.safetensors".encode()) <= 255


def test_header(tiny_base: Path, tmp_path: Path) -> None:
    adapter = random_adapter(tiny_base, alpha=2.5, provenance=PROVENANCE)
    (file,) = formats.write(adapter, tmp_path, "kohya")
    assert file.name == "erase-van-gogh-s-style-cat.safetensors"
    header = metadata(file)
    assert (
        header.items()
        >= {
            "ss_base_model_version": "sd_v1",
            "ss_network_module": "networks.lora",
            "ss_network_dim": "4",
            "ss_network_alpha": "2.5",
            "ss_output_name": "erase-van-gogh-s-style-cat",
            "ss_v2": "False",
            "ss_sd_model_name": "owner/base",
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": "stable-diffusion-v1/lora",
            "modelspec.implementation": "diffusers",
            "modelspec.title": "erase-van-gogh-s-style-cat",
            "modelspec.resolution": "512x512",
            "modelspec.prediction_type": "epsilon",
            "erasediff.base_model": "owner/base",
            "erasediff.base_fingerprint": "f" * 64,
            "erasediff.concepts": '["Van Gogh\'s style", "cat"]',
            "erasediff.objective": "erasediff",
            "erasediff.recipe_sha256": "a" * 64,
            "erasediff.version": "0.1.0",
        }.items()
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", header["modelspec.date"])
    data = file.read_bytes()
    content = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert header["modelspec.hash_sha256"] == f"0x{content}"
    assert header["sshs_model_hash"] == content
    # A1111's first hash is taken of a file with the ss_ fields alone.
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(file), bare, {key: value for key, value in header.items() if key.startswith("ss_")})
    assert header["sshs_legacy_hash"] == hashlib.sha256(bare.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize(
    ("architecture", "prediction", "expected"),
    [
        ("stable-diffusion-v2-768-v", "v_prediction", ("sd_v2_v", "True", "v", "768x768")),
        ("stable-diffusion-v2-512", "epsilon", ("sd_v2", "True", "epsilon", "512x512")),
        ("stable-diffusion-xl-v1-base", "epsilon", ("sdxl_base_v1-0", "False", "epsilon", "1024x1024")),
    ],
)
def test_header_of_other_families(architecture: str, prediction: str, expected: Any, tmp_path: Path) -> None:
    layer = LoraLayer(torch.ones(2, 8), torch.ones(8, 2), 2.0)
    origin = Provenance(architecture=architecture, prediction_type=prediction)
    (file,) = formats.write(LoraAdapter({"unet.mid_block.attentions.0.proj_in": layer}, origin), tmp_path, "kohya")
    header = metadata(file)
    names = ("ss_base_model_version", "ss_v2", "modelspec.prediction_type", "modelspec.resolution")
    assert tuple(header[name] for name in names) == expected
    assert header["modelspec.architecture"] == f"{architecture}/lora"


def test_sdxl_file_is_read_by_diffusers_under_the_same_names(tmp_path: Path) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
    paths = [
        name
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and re.search(r"attentions|samplers|conv1|conv2", name)
    ]
    layers = {
        f"unet.{path}": LoraLayer(torch.full((1, 1), float(i)), torch.ones(1, 1), 0.5) for i, path in enumerate(paths)
    }
    adapter = LoraAdapter(layers, Provenance(architecture="stable-diffusion-xl-v1-base"))
    (file,) = formats.write(adapter, tmp_path, "kohya")
    assert not [key for key in load_file(file) if "down_blocks" in key or "up_blocks" in key]
    state, alphas = StableDiffusionXLPipeline.lora_state_dict(str(file), unet_config=unet.config)
    ours = {key.removeprefix("unet."): float(tensor.sum()) for key, tensor in state.items()}
    ours = convert_unet_state_dict_to_peft(ours)
    for i, path in enumerate(paths):
        assert ours[f"{path}.lora_A.weight"] == float(i)
    assert set(alphas.values()) == {0.5}
    back = formats.read(file)
    assert back.layers.keys() == layers.keys()


def with_text_encoder(base: Path) -> LoraAdapter:
    generator = torch.Generator().manual_seed(7)

    def layer() -> LoraLayer:
        return LoraLayer(torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator), 3.0)

    adapter = random_adapter(base, alpha=3.0, rank=2, provenance=PROVENANCE)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    text = {f"text_encoder.encoder.layers.0.{name}": layer() for name in names}
    return LoraAdapter(dict(sorted({**adapter.layers, **text}.items())), adapter.provenance)


@pytest.mark.parametrize("format", FORMATS)
def test_text_encoder_adapters(format: str, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    adapter = with_text_encoder(tiny_base)
    file, *_ = formats.write(adapter, tmp_path / "a", format)
    back = beside_factors(formats.read(tmp_path / "a"))
    assert list(back.layers) == list(adapter.layers)
    assert all(torch.allclose(back.layers[n].up, layer.up, rtol=2e-7) for n, layer in adapter.layers.items())
    assert {layer.alpha for layer in back.layers.values()} == {3.0}
    if format == "kohya":
        assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in load_file(file)

    merged = tmp_path / "merged"
    assert cli("merge", tiny_base, file.parent, "--output", merged).status == 0
    ids = torch.tensor([[1, 5, 9, 2]])
    expected = pipeline(merged).text_encoder(ids).last_hidden_state
    if format != "peft":
        pipe = pipeline(tiny_base)
        before = pipe.text_encoder(ids).last_hidden_state
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        loaded = pipe.text_encoder(ids).last_hidden_state
        assert torch.allclose(loaded, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(loaded, before, rtol=1e-2, atol=1e-2)


def mixed(base: Path) -> LoraAdapter:
    """Ranks and alphas that differ by layer."""
    adapter = random_adapter(base, "attention_feed_forward_convolutions", 4.0)
    layers = {}
    for index, (name, layer) in enumerate(adapter.layers.items()):
        rank = (4, 2, 3)[index % 3]
        layers[name] = LoraLayer(layer.down[:rank].contiguous(), layer.up[:, :rank].contiguous(), (4.0, 1.5)[index % 2])
    return LoraAdapter(layers, PROVENANCE)


@pytest.mark.parametrize("format", FORMATS)
def test_rank_and_alpha_patterns_survive_every_format(format: str, tiny_base: Path, tmp_path: Path) -> None:
    adapter = mixed(tiny_base)
    formats.write(adapter, tmp_path, format)
    back = beside_factors(formats.read(tmp_path))
    assert {n: (layer.rank, layer.alpha, layer.scale) for n, layer in back.layers.items()} == {
        n: (layer.rank, layer.alpha, layer.scale) for n, layer in adapter.layers.items()
    }
    assert back.provenance == PROVENANCE


def test_patterns_as_diffusers_loads_them(tiny_base: Path, tmp_path: Path) -> None:
    adapter = mixed(tiny_base)
    formats.write(adapter, tmp_path, "diffusers")
    pipe = pipeline(tiny_base)
    pipe.load_lora_weights(tmp_path)
    for name, layer in adapter.component("unet").items():
        module = pipe.unet.get_submodule(name)
        assert torch.allclose(module.get_delta_weight("default_0"), layer.delta(), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("option", ["rslora", "dora"])
@pytest.mark.parametrize("format", FORMATS)
def test_rslora_and_dora_survive_every_format(format: str, option: str, tiny_base: Path, tmp_path: Path) -> None:
    adapter = random_adapter(tiny_base, "attention_feed_forward_convolutions", 3.0, **{option: True})
    formats.write(adapter, tmp_path, format)
    back = beside_factors(formats.read(tmp_path))
    for name, layer in adapter.layers.items():
        assert back.layers[name].scale == pytest.approx(layer.scale, rel=1e-6)
        if option == "dora":
            assert torch.equal(back.layers[name].magnitude, layer.magnitude)
    if option == "rslora" and format != "kohya":
        assert all(layer.rslora and layer.alpha == 3.0 for layer in back.layers.values())


def test_foreign_notes_stay_and_hashes_are_made_anew(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    (file,) = formats.write(random_adapter(tiny_base), tmp_path / "a.safetensors", "kohya")
    notes = {"ss_training_comment": "by another tool", "modelspec.author": "A. Nother", "sshs_model_hash": "stale"}
    save_file(load_file(file), file, metadata(file) | notes)
    assert cli("convert", file, tmp_path / "peft", "--format", "peft").status == 0
    assert cli("convert", tmp_path / "peft", tmp_path / "b.safetensors", "--format", "kohya").status == 0
    header = metadata(tmp_path / "b.safetensors")
    assert header["ss_training_comment"] == "by another tool"
    assert header["modelspec.author"] == "A. Nother"
    data = (tmp_path / "b.safetensors").read_bytes()
    content = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert header["sshs_model_hash"] == content
