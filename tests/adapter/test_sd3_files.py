"""Single files of Stable Diffusion 3 in the authors' layout, against diffusers' own translation of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file, save_file
from single_file import NETWORK, pack_sd3
from tiny import tiny_sd3_pipeline
from torch import Tensor

from erasediff_lora.adapter import Checkpoint, LoraAdapter, LoraLayer, Provenance, fingerprint, formats

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def transformer(file: Path) -> dict[str, Tensor]:
    """By diffusers' names, as it translates them itself."""
    network = {key: tensor for key, tensor in load_file(file).items() if key.startswith(NETWORK)}
    translated: dict[str, Tensor] = convert_sd3_transformer_checkpoint_to_diffusers(network)
    return translated


def on_every_layer(folder: Path, seed: int, rank: int = 2) -> LoraAdapter:
    """Random updates of all linear layers and convolutions of the transformer, and of an attention of both encoders."""
    generator = torch.Generator().manual_seed(seed)

    def layer(weight: Tensor) -> LoraLayer:
        ones = [1] * (weight.ndim - 2)
        down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.1
        return LoraLayer(down, torch.randn(weight.shape[0], rank, *ones, generator=generator), float(rank))

    layers = {}
    for key, tensor in sorted(load_file(folder / TRANSFORMER).items()):
        if key.endswith(".weight") and tensor.ndim > 1:
            layers[f"transformer.{key.removesuffix('.weight')}"] = layer(tensor)
    for component in ("text_encoder", "text_encoder_2"):
        for key, tensor in load_file(folder / component / "model.safetensors").items():
            if key.endswith("layers.0.self_attn.q_proj.weight"):
                path = key.removeprefix("text_model.").removesuffix(".weight")
                layers[f"{component}.{path}"] = layer(tensor)
    return LoraAdapter(layers, Provenance(architecture="stable-diffusion-3"))


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3") / "tiny"
    tiny_sd3_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_several_adapters_on_a_single_file(dtype: Any, sd3: Path, tmp_path: Path, cli: Cli) -> None:
    file, out = pack_sd3(sd3, tmp_path / "sd3.safetensors", dtype), tmp_path / "out.safetensors"
    assert fingerprint(Checkpoint(file)) == fingerprint(Checkpoint(sd3))
    adapters = [on_every_layer(sd3, seed) for seed in (1, 2)]
    for number, adapter in enumerate(adapters):
        formats.write(adapter, tmp_path / f"{number}.safetensors", "diffusers")
    result = cli("merge", file, tmp_path / "0.safetensors", f"{tmp_path / '1.safetensors'}:0.5", "--output", out)
    assert result.status == 0, result.err
    old, new = transformer(file), transformer(out)
    for key, tensor in old.items():
        name = f"transformer.{key.removesuffix('.weight')}"
        expected = tensor.double()
        if key.endswith(".weight") and name in adapters[0].layers:
            expected = expected + adapters[0].layers[name].delta() + 0.5 * adapters[1].layers[name].delta()
        step = 0 if dtype == torch.float32 else torch.finfo(dtype).eps * float(expected.abs().max())
        assert float((new[key].double() - expected).abs().max()) <= step + 1e-6, key
    key = "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(load_file(file)[key], load_file(out)[key])


@pytest.mark.parametrize("by_input", [False, True])
def test_dora_of_rows_that_share_a_tensor(by_input: bool, sd3: Path, tmp_path: Path, cli: Cli) -> None:
    """Queries, keys and values have norms of their own, also where they lie in one tensor."""
    file, plain = pack_sd3(sd3, tmp_path / "sd3.safetensors"), on_every_layer(sd3, 1)
    tensors: dict[str, Tensor] = {}
    for name, layer in plain.layers.items():
        count = layer.shape[1] if by_input else layer.shape[0]
        shape = (1, count) if by_input else (count, 1)
        tensors |= {f"{name}.lora_A.weight": layer.down, f"{name}.lora_B.weight": layer.up}
        tensors[f"{name}.dora_scale"] = torch.rand(*shape, *[1] * (len(layer.shape) - 2)) + 0.5
    save_file(tensors, tmp_path / "dora.safetensors")
    for model, out in ((sd3, tmp_path / "folder"), (file, tmp_path / "merged.safetensors")):
        result = cli("merge", model, tmp_path / "dora.safetensors", "--output", out)
        assert result.status == 0, result.err
    merged, folder = transformer(tmp_path / "merged.safetensors"), load_file(tmp_path / "folder" / TRANSFORMER)
    for key, tensor in folder.items():
        torch.testing.assert_close(merged[key], tensor, rtol=1e-5, atol=1e-6, msg=key)
    base = load_file(sd3 / TRANSFORMER)
    for name, layer in plain.layers.items():
        if name.startswith("transformer.") and layer.delta().ndim == 2:
            key = f"{name.removeprefix('transformer.')}.weight"
            moved = base[key].double() + layer.delta().double()
            dim = 0 if by_input else 1
            exact = moved / moved.norm(dim=dim, keepdim=True) * tensors[f"{name}.dora_scale"]
            torch.testing.assert_close(folder[key].double(), exact, rtol=1e-5, atol=1e-5, msg=key)


def test_folder_and_single_file_agree_and_unmerge(sd3: Path, tmp_path: Path, cli: Cli) -> None:
    file = pack_sd3(sd3, tmp_path / "sd3.safetensors")
    formats.write(on_every_layer(sd3, 1), tmp_path / "a.safetensors", "diffusers")
    for model, out in ((sd3, tmp_path / "folder"), (file, tmp_path / "merged.safetensors")):
        assert cli("merge", model, tmp_path / "a.safetensors", "--output", out).status == 0
    merged, folder = transformer(tmp_path / "merged.safetensors"), load_file(tmp_path / "folder" / TRANSFORMER)
    assert all(torch.equal(tensor, merged[key]) for key, tensor in folder.items())
    back = tmp_path / "back.safetensors"
    command = ("merge", tmp_path / "merged.safetensors", tmp_path / "a.safetensors", "--output", back, "--unmerge")
    result = cli(*command, "--compare", sd3)
    assert result.status == 0, result.err
    assert float(result.out.split(", ")[1].split(" rounding")[0]) <= 1.01


def test_extract_and_stack(sd3: Path, tmp_path: Path, cli: Cli) -> None:
    base = pack_sd3(sd3, tmp_path / "base.safetensors")
    adapter = on_every_layer(sd3, 1)
    formats.write(adapter, tmp_path / "a.safetensors", "diffusers")
    assert cli("merge", base, tmp_path / "a.safetensors", "--output", tmp_path / "tuned.safetensors").status == 0
    result = cli("extract", sd3, tmp_path / "tuned.safetensors", "--rank", 2, "--output", tmp_path / "x.safetensors")
    assert result.status == 0, result.err
    found = formats.read(tmp_path / "x.safetensors")
    assert found.layers.keys() == adapter.layers.keys()
    assert found.architecture == "stable-diffusion-3"
    for name, layer in adapter.layers.items():
        torch.testing.assert_close(found.layers[name].delta(), layer.delta(), rtol=1e-3, atol=1e-4, msg=name)
    one, two = tmp_path / "a.safetensors", f"{tmp_path / 'x.safetensors'}:-1"
    result = cli("stack", one, two, "--output", tmp_path / "nothing.safetensors")
    assert result.status == 0, result.err
    left = formats.read(tmp_path / "nothing.safetensors")
    assert all(float(layer.delta().abs().max()) < 1e-3 for layer in left.layers.values())


def test_transformer_alone(sd3: Path, tmp_path: Path, cli: Cli) -> None:
    file = pack_sd3(sd3, tmp_path / "sd3.safetensors")
    bare = {key.removeprefix(NETWORK): t for key, t in load_file(file).items() if key.startswith(NETWORK)}
    save_file(bare, tmp_path / "bare.safetensors")
    adapter = on_every_layer(sd3, 1)
    network = {name: layer for name, layer in adapter.layers.items() if name.startswith("transformer.")}
    formats.write(LoraAdapter(network, adapter.provenance), tmp_path / "a.safetensors", "diffusers")
    for name in ("sd3", "bare"):
        out = tmp_path / f"{name}2.safetensors"
        assert cli("merge", tmp_path / f"{name}.safetensors", tmp_path / "a.safetensors", "--output", out).status == 0
    expected, got = load_file(tmp_path / "sd32.safetensors"), load_file(tmp_path / "bare2.safetensors")
    assert all(torch.equal(tensor, expected[NETWORK + key]) for key, tensor in got.items())
    formats.write(adapter, tmp_path / "b.safetensors", "diffusers")
    back = tmp_path / "no.safetensors"
    refused(
        cli("merge", tmp_path / "bare.safetensors", tmp_path / "b.safetensors", "--output", back),
        "adapts 2 weights that",
        "such as text_encoder.encoder.layers.0.self_attn.q_proj",
    )


def test_it_trains_on_the_transformer_of_a_single_file(
    sd3: Path, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """The rest is a folder's, whose own transformer is another one."""
    file, rest = pack_sd3(sd3, tmp_path / "sd3.safetensors"), tmp_path / "rest"
    shutil.copytree(sd3, rest)
    save_file({name: tensor + 1 for name, tensor in load_file(sd3 / TRANSFORMER).items()}, rest / TRANSFORMER)
    found = []
    for number, model in enumerate(({"base": str(sd3)}, {"base": str(rest), "network": str(file)})):
        out = tmp_path / f"run-{number}"
        given = recipe_file(model=model | {"family": "stable_diffusion_3"}, output=str(out))
        result = cli("train", given)
        assert result.status == 0, result.err
        found.append(load_file(out / "pytorch_lora_weights.safetensors"))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
