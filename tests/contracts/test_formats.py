"""What every file format must do, whatever the targets and alpha."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import ALPHAS, TARGETS, close, draw, inject, pipeline, random_adapter
from diffusers import StableDiffusionPipeline
from fixtures import Cli
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor

from erasediff_lora.adapter import LoraAdapter, formats
from erasediff_lora.adapter.scaling import beside_factors
from erasediff_lora.registry import FORMATS


def by_peft(pipe: StableDiffusionPipeline, file: Path, name: str) -> None:
    if isinstance(pipe.unet, PeftModel):
        pipe.unet.load_adapter(file.parent, adapter_name=name)
    else:
        pipe.unet = PeftModel.from_pretrained(pipe.unet, file.parent, adapter_name=name)


def by_diffusers(pipe: StableDiffusionPipeline, file: Path, name: str) -> None:
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)


# Each format is loaded by the program that it is for.
LOADERS: dict[str, Callable[..., None]] = {"diffusers": by_diffusers, "kohya": by_diffusers, "peft": by_peft}


@dataclass
class Case:
    adapter: LoraAdapter
    drawn: Tensor
    base: Path


@pytest.fixture(scope="module", params=[(preset, alpha) for preset in TARGETS for alpha in ALPHAS], ids=str)
def case(request: pytest.FixtureRequest, tiny_base: Path) -> Case:
    pipe = pipeline(tiny_base)
    adapter = inject(pipe, *request.param)
    drawn = draw(pipe)
    assert not close(drawn, draw(pipeline(tiny_base)), 0.05), "the adapter must show"
    return Case(adapter, drawn, tiny_base)


def same(one: LoraAdapter, other: LoraAdapter) -> bool:
    """The same ΔW and alphas, and the same bits where the scale is a power of two; else B is rounded on the way."""
    return one.layers.keys() == other.layers.keys() and all(
        torch.equal(a.down, b.down)
        and (torch.equal(a.up, b.up) if math.log2(b.scale).is_integer() else close(a.up, b.up, 2e-7))
        and (a.alpha, a.scale) == (b.alpha, b.scale)
        for a, b in ((layer, other.layers[name]) for name, layer in one.layers.items())
    )


def test_every_format_is_tested() -> None:
    assert LOADERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("format", FORMATS)
def test_reloaded_draws_what_the_trained_one_drew(format: str, case: Case, tmp_path: Path) -> None:
    file, *_ = formats.write(case.adapter, tmp_path / "out", format)
    pipe = pipeline(case.base)
    LOADERS[format](pipe, file, "erase")
    is_exact = format != "diffusers" or all(layer.scale == 1 for layer in case.adapter.layers.values())
    assert torch.equal(draw(pipe), case.drawn) if is_exact else close(draw(pipe), case.drawn, 2e-6)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("other", FORMATS)
def test_round_trip_by_convert_is_lossless(format: str, other: Any, case: Case, tmp_path: Path, cli: Cli) -> None:
    formats.write(case.adapter, tmp_path / "a", format)
    assert cli("convert", tmp_path / "a", tmp_path / "b", "--format", other).status == 0
    assert cli("convert", tmp_path / "b", tmp_path / "c", "--format", format).status == 0
    name, back = formats.read_as(tmp_path / "c")
    assert name == format
    assert same(beside_factors(back), case.adapter)
    assert back.provenance == case.adapter.provenance


@pytest.mark.parametrize("format", FORMATS)
def test_merged_draws_what_the_active_one_draws_and_unmerged_is_the_base(
    format: str, case: Case, tmp_path: Path, cli: Cli
) -> None:
    formats.write(case.adapter, tmp_path / "adapter", format)
    merged, back = tmp_path / "merged", tmp_path / "back"
    result = cli("merge", case.base, tmp_path / "adapter", "--output", merged)
    assert result.status == 0, result.err
    assert close(draw(pipeline(merged)), case.drawn)

    result = cli("merge", merged, tmp_path / "adapter", "--output", back, "--unmerge", "--compare", case.base)
    assert result.status == 0, result.err
    weights = "unet/diffusion_pytorch_model.safetensors"
    with (
        safe_open(case.base / weights, "pt") as a,
        safe_open(back / weights, "pt") as b,
        safe_open(merged / weights, "pt") as m,
    ):
        for key in a.keys():  # noqa: SIM118
            old, new, between = a.get_tensor(key), b.get_tensor(key), m.get_tensor(key)
            step = torch.finfo(old.dtype).eps * torch.maximum(old.abs(), between.abs())
            assert bool(((old - new).abs() <= step).all()), key
    assert "greatest difference from" in result.out


@pytest.mark.parametrize("format", FORMATS)
def test_stacked_draws_what_both_active_draw(format: str, case: Case, tmp_path: Path, cli: Cli) -> None:
    second = random_adapter(case.base, "attention", 3.0, rank=2, seed=5)
    one, *_ = formats.write(case.adapter, tmp_path / "one", format)
    two, *_ = formats.write(second, tmp_path / "two", format)
    pipe = pipeline(case.base)
    by_diffusers(pipe, formats.write(case.adapter, tmp_path / "d1", "diffusers")[0], "one")
    by_diffusers(pipe, formats.write(second, tmp_path / "d2", "diffusers")[0], "two")
    pipe.set_adapters(["one", "two"], [1.0, 0.6])
    both = draw(pipe)

    result = cli("stack", one.parent, f"{two.parent}:0.6", "--output", tmp_path / "stack", "--format", format)
    assert result.status == 0, result.err
    stacked, *_ = (tmp_path / "stack").glob("*.safetensors")
    pipe = pipeline(case.base)
    LOADERS[format](pipe, stacked, "stack")
    assert close(draw(pipe), both)
