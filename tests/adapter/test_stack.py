"""Stacking: exactness is in the contract; here the report, the compression and the refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import random_adapter
from fixtures import Cli
from refusals import refused
from safetensors.torch import load_file

from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, Weighted, formats, interference

NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def layer(rows: list[int], columns: list[int], size: int = 16) -> LoraLayer:
    """ΔW that reads the unit vectors `rows` and writes the unit vectors `columns`."""
    eye = torch.eye(size)
    return LoraLayer(eye[rows], eye[:, columns].contiguous(), float(len(rows)))


def both(first: LoraLayer, second: LoraLayer, strength: float = 1.0) -> Any:
    (overlap,) = interference(Weighted(LoraAdapter({NAME: first})), Weighted(LoraAdapter({NAME: second}), strength))
    return overlap


def test_overlap_of_known_spaces() -> None:
    same = both(layer([0, 1], [2, 3]), layer([0, 1], [2, 3]))
    assert (same.input_overlap, same.output_overlap, same.cosine) == pytest.approx((1, 1, 1))
    against = both(layer([0, 1], [2, 3]), layer([0, 1], [2, 3]), -1.0)
    assert against.cosine == pytest.approx(-1)
    apart = both(layer([0, 1], [2, 3]), layer([4, 5], [6, 7]))
    assert (apart.input_overlap, apart.output_overlap, apart.cosine) == pytest.approx((0, 0, 0))
    half = both(layer([0, 1], [2, 3]), layer([1, 5], [6, 7]), 0.5)
    assert (half.input_overlap, half.output_overlap) == pytest.approx((0.5, 0))
    assert half.norms == pytest.approx((2**0.5, 2**0.5 / 2))
    assert (half.input_chance, half.output_chance) == pytest.approx((2 / 16, 2 / 16))


def test_overlap_equals_that_of_full_matrices() -> None:
    """Against spaces and products of the whole ΔW, which the report never forms."""
    torch.manual_seed(0)
    one = LoraLayer(torch.randn(3, 20), torch.randn(12, 3), 2.0)
    two = LoraLayer(torch.randn(2, 20), torch.randn(12, 2), 2.0)
    found = both(one, two)
    a, b = one.delta().double(), two.delta().double()
    (u1, _, v1), (u2, _, v2) = (torch.linalg.svd(m, full_matrices=False) for m in (a, b))
    assert found.input_overlap == pytest.approx(float((v1[:3] @ v2[:2].T).square().sum() / 2), rel=1e-5)
    assert found.output_overlap == pytest.approx(float((u1[:, :3].T @ u2[:, :2]).square().sum() / 2), rel=1e-5)
    assert found.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-4)
    assert found.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-5)


def test_report_before_stacking(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    formats.write(random_adapter(tiny_base), tmp_path / "a", "diffusers")
    formats.write(random_adapter(tiny_base, rank=2, seed=1), tmp_path / "b", "kohya")
    result = cli("stack", tmp_path / "a", f"{tmp_path / 'b'}:0.5", "--report", tmp_path / "report.json")
    assert result.status == 0, result.err
    assert "interference of" in result.out and "layers that interfere most" in result.out
    assert "about what chance gives" in result.out
    same = cli("stack", tmp_path / "a", tmp_path / "a")
    assert "times what chance gives: they act on the same features" in same.out
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["strengths"] == [1.0, 0.5]
    assert report["shared_layers"] == len(report["per_layer"]) == len(formats.read(tmp_path / "a").layers)
    assert 0 < report["input_overlap"] < 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "report.json"]


@pytest.mark.parametrize("rank", [2, 5])
def test_compression_is_the_best_of_its_rank_and_says_what_it_keeps(
    rank: int, tiny_base: Path, tmp_path: Path, cli: Cli
) -> None:
    one = random_adapter(tiny_base, "attention_feed_forward_convolutions", 3.0)
    two = random_adapter(tiny_base, "attention", seed=2)
    formats.write(one, tmp_path / "a", "diffusers")
    formats.write(two, tmp_path / "b", "diffusers")
    result = cli("stack", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c", "--rank", rank)
    assert result.status == 0, result.err
    kept = total = 0.0
    compressed = formats.read(tmp_path / "c")
    for name, got in compressed.layers.items():
        exact = one.layers[name].delta().double()
        if name in two.layers:
            exact = exact + two.layers[name].delta().double()
        matrix = exact.flatten(1)
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert got.rank <= rank
        assert torch.allclose(got.delta().double().flatten(1), best, rtol=1e-4, atol=1e-4 * float(s[0])), name
        kept, total = kept + float(s[:rank].square().sum()), total + float(s.square().sum())
    said = float(result.out.split("compressed to rank")[1].split(": ")[1].split("%")[0])
    assert said == pytest.approx(100 * kept / total, abs=1e-3)
    assert f"compressed to rank {rank}" in compressed.provenance.history[-1]


def test_stack_carries_the_provenance_of_its_parts(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    for name, concept in (("a", "cat"), ("b", "clock")):
        origin = Provenance("o/base", "f" * 64, "stable-diffusion-v1", concepts=(concept,), version="0.1.0")
        formats.write(random_adapter(tiny_base, provenance=origin, seed=len(name)), tmp_path / name, "diffusers")
    result = cli("stack", tmp_path / "a", f"{tmp_path / 'b'}:0.8", "--output", tmp_path / "c", "--format", "kohya")
    assert result.status == 0, result.err
    file = tmp_path / "c/erase-cat-clock.safetensors"
    assert formats.read(file).provenance == Provenance(
        base_model="o/base",
        base_fingerprint="f" * 64,
        architecture="stable-diffusion-v1",
        concepts=("cat", "clock"),
        version="0.1.0",
        history=("stack of 1 × erase-cat + 0.8 × erase-clock",),
    )
    assert {float(t) for k, t in load_file(file).items() if k.endswith("alpha")} == {8.0}
    assert cli("inspect", file).out.count("erase-clock") == 1


def test_other_bases_are_refused(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    for name, mark in (("a", "1"), ("b", "2")):
        origin = Provenance(base_model=f"o/{name}", base_fingerprint=mark * 64)
        formats.write(random_adapter(tiny_base, provenance=origin), tmp_path / name, "diffusers")
    refused(
        cli("stack", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c"),
        f"adapter = '{tmp_path / 'b'}': was trained on o/b (" + "2" * 64,
        f"but {tmp_path / 'a'} on o/a",
        "Stack adapters of one base only.",
    )
    narrow = LoraAdapter({name: LoraLayer(torch.ones(1, 3), torch.ones(3, 1), 1.0) for name in [NAME]})
    formats.write(narrow, tmp_path / "d", "diffusers")
    refused(
        cli("stack", tmp_path / "a", tmp_path / "d", "--output", tmp_path / "c"), "is for another model than", "[3, 3]"
    )
    refused(cli("stack", tmp_path / "a", tmp_path / "a", "--rank", "0"), "--rank = 0: must be at least 1")
    assert not (tmp_path / "c").exists()


def test_dora_is_refused_where_its_update_depends_on_the_base(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    formats.write(random_adapter(tiny_base, dora=True), tmp_path / "dora", "diffusers")
    refused(
        cli("stack", tmp_path / "dora", tmp_path / "dora"),
        "has DoRA at ",
        "weights, first at unet.",
        "stack takes plain LoRA only",
        "convert --as lora --rank RANK --base BASE",
    )
    out = tmp_path / "out"
    refused(
        cli("merge", tiny_base, tmp_path / "dora", "--output", out, "--unmerge"),
        "is a DoRA: merging divides by norms that the merged model no longer has",
        "Take the base",
    )
    assert not out.exists()
