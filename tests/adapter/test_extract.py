"""The LoRA of the difference of two checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import random_adapter
from fixtures import Cli
from refusals import refused
from safetensors.torch import load_file, save_file
from single_file import pack
from tiny import tiny_class_pipeline, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

from erasediff_lora.adapter import formats

UNET = "unet/diffusion_pytorch_model.safetensors"


def test_a_merged_adapter_comes_back(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    adapter = random_adapter(tiny_base, "attention_feed_forward_convolutions", 2.5)
    formats.write(adapter, tmp_path / "a", "kohya")
    assert cli("merge", tiny_base, tmp_path / "a", "--output", tmp_path / "tuned").status == 0
    file = pack(tmp_path / "tuned", tmp_path / "tuned.safetensors")
    result = cli(
        "extract",
        tiny_base,
        file,
        "--rank",
        4,
        "--concepts",
        "cat",
        "dog",
        "--output",
        tmp_path / "x",
        "--format",
        "kohya",
        "--family",
        "stable-diffusion-v1",
    )
    assert result.status == 0, result.err
    found = formats.read(tmp_path / "x/erase-cat-dog.safetensors")
    assert found.layers.keys() == adapter.layers.keys()
    for name, layer in adapter.layers.items():
        exact = layer.delta()
        assert float((found.layers[name].delta() - exact).norm()) <= 1e-4 * float(exact.norm()), name
    assert f"extracted  {len(adapter.layers)} weights, rank 4 to 4, 100.0000% of the energy kept" in result.out
    assert found.provenance.concepts == ("cat", "dog")
    result = cli("merge", tiny_base, tmp_path / "x", "--output", tmp_path / "again", "--strict")
    assert result.status == 0, result.err
    old, new = load_file(tmp_path / "tuned" / UNET), load_file(tmp_path / "again" / UNET)
    assert all(torch.allclose(old[key], new[key], rtol=1e-4, atol=1e-5) for key in old)


@pytest.mark.parametrize(
    ("make", "architecture"),
    [
        (tiny_pipeline, "stable-diffusion-v1"),
        (tiny_xl_pipeline, "stable-diffusion-xl-v1-base"),
        (tiny_sd3_pipeline, "stable-diffusion-3"),
    ],
)
def test_the_base_tells_what_the_adapter_is_for(make: Any, architecture: str, tmp_path: Path, cli: Cli) -> None:
    """Its pipeline does, though self attention alone does not, and no published model is as small."""
    make().save_pretrained(tmp_path / "base")
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    (file,) = (tmp_path / "tuned" / ("transformer" if "-3" in architecture else "unet")).glob("*.safetensors")
    weights = load_file(file)
    key = next(key for key in weights if key.endswith(("attn1.to_q.weight", "attn.to_q.weight")))
    weights[key] = weights[key] + torch.randn_like(weights[key])
    save_file(weights, file)
    result = cli("extract", tmp_path / "base", tmp_path / "tuned", "--rank", 2, "--output", tmp_path / "x")
    assert result.status == 0, result.err
    assert formats.read(tmp_path / "x").architecture == architecture
    result = cli(
        *("extract", tmp_path / "base", tmp_path / "tuned", "--rank", 2, "--output", tmp_path / "y"),
        "--family",
        "sd_v2",
    )
    assert result.status == 2 and f"is not what {tmp_path / 'base'} is. It is {architecture}." in result.err


@pytest.mark.parametrize(("options", "bound"), [(("--rank", 3), 3), (("--energy", 0.8), None)])
def test_the_best_factors_of_a_full_rank_change(
    options: Any, bound: int | None, tiny_base: Path, tmp_path: Path, cli: Cli
) -> None:
    """Against PyTorch's SVD of the whole difference; changed biases are named."""
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_base, tuned)
    weights = load_file(tuned / UNET)
    torch.manual_seed(0)
    names = ["mid_block.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "conv_in"]
    changes = {f"{name}.weight": torch.randn_like(weights[f"{name}.weight"]) * 0.01 for name in names}
    for key, change in changes.items():
        weights[key] = weights[key] + change
    weights["conv_in.bias"] = weights["conv_in.bias"] + 1
    weights["conv_norm_out.weight"] = weights["conv_norm_out.weight"] + 1
    save_file(weights, tuned / UNET)
    result = cli("extract", tiny_base, tuned, *options, "--output", tmp_path / "x")
    assert result.status == 0, result.err
    assert "2 changed biases, norms or embeddings are left out" in result.err
    found = formats.read(tmp_path / "x")
    assert sorted(found.layers) == sorted(f"unet.{name}" for name in names)
    kept = total = 0.0
    base = load_file(tiny_base / UNET)
    for name in names:
        exact = (weights[f"{name}.weight"].double() - base[f"{name}.weight"].double()).flatten(1)
        u, s, vt = torch.linalg.svd(exact, full_matrices=False)
        rank = bound or int((s.square().cumsum(0) < 0.8 * s.square().sum()).sum()) + 1
        layer = found.layers[f"unet.{name}"]
        assert layer.rank == rank
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert torch.allclose(layer.delta().double().flatten(1), best, rtol=1e-4, atol=1e-5 * float(s[0]))
        kept, total = kept + float(s[:rank].square().sum()), total + float(s.square().sum())
    assert float(result.out.split("rank ")[1].split(", ")[1].split("%")[0]) == pytest.approx(
        100 * kept / total, abs=0.01
    )
    assert {layer.scale for layer in found.layers.values()} == {1.0}


def test_refusals(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "x"
    refused(cli("extract", tiny_base, tiny_base, "--rank", 4, "--output", out), "differs from", "in no linear")
    refused(cli("extract", tiny_base, tiny_base, "--output", out), "--rank = None: or --energy must be given")
    refused(
        cli("extract", tiny_base, tiny_base, "--rank", 0, "--energy", 1.5, "--output", out),
        "2 problems",
        "--rank = 0: must be at least 1",
        "--energy = 1.5: must lie in (0, 1]",
    )
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = load_file(other / UNET)
    weights["conv_in.weight"] = torch.ones(3, 3, 3, 3)
    save_file(weights, other / UNET)
    refused(
        cli("extract", tiny_base, other, "--rank", 4, "--output", out), "unet.conv_in is [3, 3, 3, 3] here", "there."
    )
    weights = load_file(tiny_base / UNET)
    first, second, *_ = sorted(key for key in weights if key.endswith(".weight"))
    save_file({key: tensor for key, tensor in weights.items() if key not in (first, second)}, other / UNET)
    gone = f"unet.{first.removesuffix('.weight')} is missing here"
    refused(cli("extract", tiny_base, other, "--rank", 4, "--output", out), gone, ", and so are 1 more.")
    weights["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, other / UNET)
    refused(cli("extract", tiny_base, other, "--rank", 4, "--output", out), "has NaN or Inf in unet.conv_in")
    assert not out.exists()


def test_class_conditional_models(tmp_path: Path, cli: Cli) -> None:
    """The family without text encoders, single files and kohya's names."""
    base = tmp_path / "base"
    tiny_class_pipeline({0: "cat", 1: "dog"}).save_pretrained(base)
    shutil.copytree(base, tmp_path / "tuned")
    weights = load_file(base / UNET)
    torch.manual_seed(0)
    names = ("conv_in", "mid_block.attentions.0.to_q", "mid_block.resnets.0.conv1")
    changes = {f"{name}.weight": torch.randn_like(weights[f"{name}.weight"]) for name in names}
    tuned = weights | {key: weights[key] + change for key, change in changes.items()}
    save_file(tuned | {"class_embedding.weight": weights["class_embedding.weight"] + 1}, tmp_path / "tuned" / UNET)
    x = tmp_path / "x"
    result = cli("extract", base, tmp_path / "tuned", "--rank", 16, "--output", x)
    assert result.status == 0, result.err
    assert "1 changed biases, norms or embeddings are left out, as no LoRA holds them, such as class_emb" in result.err
    assert formats.read(x).architecture == "ddpm-class-conditional"
    assert len(formats.read(x).layers) == len(changes)
    for key, change in changes.items():
        layer = formats.read(x).layers[f"unet.{key.removesuffix('.weight')}"]
        torch.testing.assert_close(layer.delta(), change, rtol=1e-4, atol=1e-4)
    assert cli("stack", x, f"{x}:0.5", "--output", tmp_path / "y").status == 0
    assert cli("merge", base, tmp_path / "y", "--output", tmp_path / "merged").status == 0
    merged = load_file(tmp_path / "merged" / UNET)
    for key, weight in weights.items():
        torch.testing.assert_close(merged[key], weight + 1.5 * changes.get(key, 0), rtol=1e-4, atol=1e-4, msg=key)
