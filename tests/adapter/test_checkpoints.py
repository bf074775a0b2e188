"""Bases as they lie about: with running averages, without the network's prefix, for inpainting, in 8 bits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import random_adapter
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from fixtures import Cli
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_file import pack
from torch import Tensor

from erasediff_lora.adapter import Checkpoint, LoraAdapter, LoraLayer, formats

UNET = "unet/diffusion_pytorch_model.safetensors"
NETWORK = "model.diffusion_model."
CONV_IN = f"{NETWORK}input_blocks.0.0.weight"


def with_averages(file: Path) -> Path:
    """LitEma's buffers: the network's names without their dots, and two numbers."""
    tensors = load_file(file)
    averages = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): tensor * 0.9
        for key, tensor in tensors.items()
        if key.startswith(NETWORK)
    }
    numbers = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    save_file(tensors | averages | numbers, file, {"note": "keep me"})
    return file


def deltas(adapter: LoraAdapter, file: Path) -> dict[str, Tensor]:
    """Tensor -> ΔW."""
    slots = Checkpoint(file).files[0].slots
    return {slots[name].key: layer.delta() for name, layer in adapter.layers.items()}


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> LoraAdapter:
    made = random_adapter(tiny_base)
    formats.write(made, tmp_path / "a", "diffusers")
    return made


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (CONV_IN, torch.tensor(1.0)),
        (CONV_IN, torch.ones(0, 4, 3, 3)),
        (f"{NETWORK}joint_blocks.0.x_block.attn.qkv.weight", torch.ones(4, 4)),
        (f"{NETWORK}final_layer.adaLN_modulation.1.weight", torch.ones(3, 4)),
        ("conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight", torch.ones(1)),
    ],
    ids=str,
)
def test_tensors_of_known_names_that_are_no_weights(
    key: str, value: Tensor, adapter: LoraAdapter, tmp_path: Path, cli: Cli
) -> None:
    """Numbers, nothing, and rows that cannot be shared out: found by fuzzing."""
    file = tmp_path / "model.safetensors"
    save_file({key: value, f"{NETWORK}joint_blocks.0.x_block.mlp.fc1.bias": torch.ones(1)}, file)
    refused(cli("merge", file, tmp_path / "a", "--output", tmp_path / "out.safetensors"), f"model = '{file}': ")


def test_a_running_average_of_another_shape(tiny_base: Path, adapter: LoraAdapter, tmp_path: Path, cli: Cli) -> None:
    file, out = with_averages(pack(tiny_base, tmp_path / "model.safetensors")), tmp_path / "out.safetensors"
    tensors = load_file(file)
    changed = next(key for key in deltas(adapter, file) if key.endswith("to_q.weight"))
    name = "model_ema." + changed.removeprefix("model.").replace(".", "")
    save_file(tensors | {name: torch.ones(3)}, file)
    refused(
        cli("merge", file, tmp_path / "a", "--output", out), f"has a running average {name} [3]", "with --drop_ema."
    )
    assert not out.exists()
    assert cli("merge", file, tmp_path / "a", "--output", out, "--drop_ema").status == 0


def test_running_averages_are_merged_into(tiny_base: Path, adapter: LoraAdapter, tmp_path: Path, cli: Cli) -> None:
    """As diffusers reads them: its `extract_ema` must not give the base back."""
    file, out = with_averages(pack(tiny_base, tmp_path / "model.safetensors")), tmp_path / "out.safetensors"
    result = cli("merge", file, tmp_path / "a", "--output", out)
    assert result.status == 0, result.err
    count = len(adapter.layers)
    assert f"note: {count} running averages (model_ema.*) are changed too; --drop_ema leaves all" in result.err
    config = json.loads((tiny_base / "unet/config.json").read_text())
    old, new = (convert_ldm_unet_checkpoint(load_file(path), config, extract_ema=True) for path in (file, out))
    for name, layer in adapter.layers.items():
        key = f"{name.removeprefix('unet.')}.weight"
        torch.testing.assert_close(new[key], old[key] + layer.delta(), msg=key)
    changed = {f"{name.removeprefix('unet.')}.weight" for name in adapter.layers}
    assert all(torch.equal(new[key], old[key]) for key in old.keys() - changed)
    assert load_file(out).keys() == load_file(file).keys()


def test_running_averages_are_left_out_if_asked(
    tiny_base: Path, adapter: LoraAdapter, tmp_path: Path, cli: Cli
) -> None:
    plain = pack(tiny_base, tmp_path / "plain.safetensors")
    shutil.copy(plain, tmp_path / "model.safetensors")
    file, out = with_averages(tmp_path / "model.safetensors"), tmp_path / "out.safetensors"
    assert cli("merge", plain, tmp_path / "a", "--output", tmp_path / "expected.safetensors").status == 0
    result = cli("merge", file, tmp_path / "a", "--output", out, "--drop_ema")
    assert result.status == 0, result.err
    assert "running averages (model_ema.*) are left out" in result.err
    expected, got = load_file(tmp_path / "expected.safetensors"), load_file(out)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in got)
    with safe_open(out, "pt") as opened:
        assert opened.metadata().keys() == {"note", "erasediff.merged"}


def test_averages_in_a_folder_of_their_own_are_not_copied(
    tiny_base: Path, adapter: LoraAdapter, tmp_path: Path, cli: Cli
) -> None:
    shutil.copytree(tiny_base, tmp_path / "model")
    shutil.copytree(tmp_path / "model/unet", tmp_path / "model/unet_ema")
    result = cli("merge", tmp_path / "model", tmp_path / "a", "--output", tmp_path / "out")
    assert result.status == 0, result.err
    assert "hold the model before merging: unet_ema/diffusion_pytorch_model.safetensors" in result.err
    assert not (tmp_path / "out/unet_ema/diffusion_pytorch_model.safetensors").exists()


def test_a_file_of_several_that_is_missing(tiny_base: Path, adapter: LoraAdapter, tmp_path: Path, cli: Cli) -> None:
    """The adapter's weights are all there, but the merged model would not load."""
    whole = tmp_path / "base/unet/diffusion_pytorch_model.safetensors"
    shutil.copytree(tiny_base, tmp_path / "base")
    names = [f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    tensors = load_file(whole)
    parts = [{key: tensors[key] for key in tensors if key.startswith("conv_out") is last} for last in (False, True)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, whole.with_name(name))
    table = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = whole.with_name("diffusion_pytorch_model.safetensors.index.fp16.json")
    index.write_text(json.dumps({"weight_map": table}))
    command = ("merge", tmp_path / "base", tmp_path / "a", "--output", tmp_path / "out")
    assert cli(*command).status == 0
    shutil.rmtree(tmp_path / "out")
    whole.with_name(names[1]).unlink()
    refused(cli(*command), f"index.fp16.json': names {names[1]}, which is not there: 1 of 2 files are missing.")
    whole.with_name(names[0]).unlink()
    assert cli(*command).status == 0, "an index alone, of a precision that was not downloaded"


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_network_alone(prefix: str, tiny_base: Path, adapter: LoraAdapter, tmp_path: Path, cli: Cli) -> None:
    whole = pack(tiny_base, tmp_path / "whole.safetensors")
    bare = {prefix + key.removeprefix(NETWORK): t for key, t in load_file(whole).items() if key.startswith(NETWORK)}
    save_file(bare, tmp_path / "bare.safetensors")
    for name in ("whole", "bare"):
        result = cli(
            "merge", tmp_path / f"{name}.safetensors", tmp_path / "a", "--output", tmp_path / f"{name}2.safetensors"
        )
        assert result.status == 0, result.err
    expected, got = load_file(tmp_path / "whole2.safetensors"), load_file(tmp_path / "bare2.safetensors")
    assert got.keys() == bare.keys()
    for key, tensor in got.items():
        assert torch.equal(tensor, expected[NETWORK + key.removeprefix(prefix)]), key


def for_inpainting(file: Path, target: Path) -> Path:
    """With five more inputs, for the mask and the masked picture."""
    tensors = load_file(file)
    more = torch.randn(tensors[CONV_IN].shape[0], 5, 3, 3, generator=torch.Generator().manual_seed(0))
    save_file(tensors | {CONV_IN: torch.cat([tensors[CONV_IN], more], dim=1)}, target)
    return target


def test_first_convolution_with_more_inputs(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    base = pack(tiny_base, tmp_path / "base.safetensors")
    inpainting = for_inpainting(base, tmp_path / "inpainting.safetensors")
    rows = load_file(base)[CONV_IN].shape[0]
    layer = LoraLayer(torch.randn(2, 4, 3, 3), torch.randn(rows, 2, 1, 1), 2.0)
    formats.write(LoraAdapter({"unet.conv_in": layer}), tmp_path / "a.safetensors", "diffusers")
    out = tmp_path / "out.safetensors"
    result = cli("merge", inpainting, tmp_path / "a.safetensors", "--output", out)
    assert result.status == 0, result.err
    assert "unet.conv_in has 4 inputs in" in result.err and "and 9 in" in result.err
    old, new = load_file(inpainting)[CONV_IN], load_file(out)[CONV_IN]
    torch.testing.assert_close(new[:, :4], old[:, :4] + layer.delta())
    assert torch.equal(new[:, 4:], old[:, 4:])
    wide = LoraLayer(torch.randn(2, 9, 3, 3), torch.randn(rows, 2, 1, 1), 2.0)
    formats.write(LoraAdapter({"unet.conv_in": wide}), tmp_path / "wide.safetensors", "diffusers")
    refused(
        cli("merge", base, tmp_path / "wide.safetensors", "--output", tmp_path / "no.safetensors"),
        f"unet.conv_in is [{rows}, 9, 3, 3] here and [{rows}, 4, 3, 3] there",
    )


def test_extract_from_a_model_for_inpainting(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    base = pack(tiny_base, tmp_path / "base.safetensors")
    tensors = load_file(base)
    change = torch.randn_like(tensors[CONV_IN]) * 0.1
    save_file(tensors | {CONV_IN: tensors[CONV_IN] + change}, tmp_path / "tuned.safetensors")
    tuned = for_inpainting(tmp_path / "tuned.safetensors", tmp_path / "tuned_inpainting.safetensors")
    for pair in ((base, tuned), (for_inpainting(base, tmp_path / "b.safetensors"), tmp_path / "tuned.safetensors")):
        result = cli("extract", *pair, "--rank", 16, "--output", tmp_path / "x.safetensors", "--overwrite")
        assert result.status == 0, result.err
        assert "inputs: the first 4 are compared" in result.err
        found = formats.read(tmp_path / "x.safetensors")
        assert list(found.layers) == ["unet.conv_in"]
        torch.testing.assert_close(found.layers["unet.conv_in"].delta(), change, rtol=1e-4, atol=1e-5)


def nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The closest of all values that 8 bits have, found by looking at each."""
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype).double()
    every = every[every.isfinite()].unique()
    return every[(values.double().flatten()[:, None] - every).abs().argmin(1)].reshape(values.shape)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scaled", ["", "scale_weight", "weight_scale", "rows"])
def test_8_bits(scaled: str, dtype: Any, tiny_base: Path, adapter: LoraAdapter, tmp_path: Path, cli: Cli) -> None:
    """Widened, added, and rounded once; as ComfyUI's scaled_fp8 files and others keep their scales."""
    file = pack(tiny_base, tmp_path / "model.safetensors")
    tensors = load_file(file)
    wide = {}
    for key in [key for key in tensors if key.startswith(NETWORK) and tensors[key].ndim > 1]:
        tensor = tensors[key]
        scale = torch.ones(1)
        if scaled == "rows":
            scale = tensor.flatten(1).abs().amax(1) / torch.finfo(dtype).max
            tensors[f"{key}_scale"] = scale
        elif scaled:
            scale = tensor.abs().max() / torch.finfo(dtype).max
            tensors[key.removesuffix("weight") + scaled] = scale
        column = scale.reshape(-1, *[1] * (tensor.ndim - 1))
        tensors[key] = (tensor / column).to(dtype)
        wide[key] = (tensors[key].double() * column.double(), column.double())
    if scaled == "scale_weight":
        tensors["scaled_fp8"] = torch.empty(2, dtype=dtype)
    save_file(tensors, file)
    result = cli("merge", file, tmp_path / "a", "--output", tmp_path / "out.safetensors")
    assert result.status == 0, result.err
    new, changes = load_file(tmp_path / "out.safetensors"), deltas(adapter, file)
    error = update = 0.0
    for key, (before, column) in wide.items():
        if key not in changes:
            assert torch.equal(new[key].view(torch.uint8), tensors[key].view(torch.uint8)), key
            continue
        exact = before + changes[key].double()
        stored = new[key].double()
        assert float((stored - nearest(exact / column, dtype)).abs().max()) <= 1e-6 * float(stored.abs().max()), key
        error += float((stored * column - exact).square().sum())
        update += float(changes[key].double().square().sum())
    said = float(re.search(r"rounding to them adds ([\d.e+-]+) %", result.err)[1])
    assert said == pytest.approx(100 * (error / update) ** 0.5, rel=2e-2)
    assert f"{sum(changes[key].numel() for key in changes)} changed weights are kept in 8 bits" in result.err


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        (torch.float16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float8_e5m2, torch.float16),
    ],
)
def test_extract_compares_at_the_precision_that_both_have(
    base: Any, tuned: Any, tiny_base: Path, tmp_path: Path, cli: Cli
) -> None:
    source = pack(tiny_base, tmp_path / "source.safetensors")
    tensors = load_file(source)
    save_file({key: tensor.to(base) for key, tensor in tensors.items()}, tmp_path / "base.safetensors")
    if base.itemsize == 1:  # with a scale for each row
        scales = {
            k: t.flatten(1).abs().amax(1) / 448 for k, t in tensors.items() if k.endswith("weight") and t.ndim > 1
        }
        kept = {k: t / scales[k].view(-1, *[1] * (t.ndim - 1)) if k in scales else t for k, t in tensors.items()}
        kept = {k: t.to(base) if k in scales else t for k, t in kept.items()}
        save_file(kept | {f"{k}_scale": t for k, t in scales.items()}, tmp_path / "base.safetensors")
    adapter = random_adapter(tiny_base)
    for key, delta in deltas(adapter, source).items():
        tensors[key] = tensors[key] + delta
    save_file({key: tensor.to(tuned) for key, tensor in tensors.items()}, tmp_path / "tuned.safetensors")
    pair = (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    for models in (pair, pair[::-1]):
        result = cli("extract", *models, "--rank", 4, "--output", tmp_path / "x", "--overwrite")
        assert result.status == 0, result.err
        assert f"extracted  {len(adapter.layers)} weights" in result.out
        assert "are left out" not in result.err
        assert formats.read(tmp_path / "x").layers.keys() == adapter.layers.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_faithful_unmerge_is_within_a_rounding_step(
    dtype: Any, tiny_base: Path, adapter: LoraAdapter, tmp_path: Path, cli: Cli
) -> None:
    base = pack(tiny_base, tmp_path / "base.safetensors", dtype)
    merged, back = tmp_path / "merged.safetensors", tmp_path / "back.safetensors"
    assert cli("merge", base, tmp_path / "a", "--output", merged).status == 0
    result = cli("merge", merged, tmp_path / "a", "--output", back, "--unmerge", "--compare", base)
    assert result.status == 0, result.err
    said = re.search(
        r": ([\d.e+-]+), ([\d.]+) rounding steps; ([\d.]+)% of the weights are the same, and the difference is"
        r" ([\d.e+-]+) of their norm and ([\d.]+)% of the change that was taken out",
        result.out,
    )
    old, between, new = (load_file(file) for file in (base, merged, back))
    weights = [key for key in old if key.endswith(".weight") and (key.startswith((NETWORK, "cond_stage_model")))]
    a, b, m = (torch.cat([t[key].double().flatten() for key in weights]) for t in (old, new, between))
    assert float(said[1]) == pytest.approx(float((a - b).abs().max()), rel=1e-2)
    assert float(said[2]) <= 1.01
    assert float(said[3]) == pytest.approx(100 * float((a == b).double().mean()), abs=0.01)
    assert float(said[4]) == pytest.approx(float((a - b).norm() / a.norm()), rel=0.06)
    assert float(said[5]) == pytest.approx(100 * float((a - b).norm() / (m - a).norm()), abs=0.01)
    result = cli("merge", base, tmp_path / "a", "--output", tmp_path / "m.safetensors", "--compare", base)
    assert float(re.search(r", ([\d.]+) rounding steps", result.out)[1]) > 100
