"""1×1 convolutions and linear layers are one thing to all verbs, and files have the shapes that programs expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import close, draw, pipeline
from architectures import SD_1_5, SDXL
from diffusers import UNet2DConditionModel
from fixtures import Cli
from safetensors.torch import load_file, save_file
from single_file import pack
from torch import Tensor

from erasediff_lora.adapter import formats, load

UNET = "unet/diffusion_pytorch_model.safetensors"
BLOCK = "down_blocks.1.attentions.0"
MODULES = (f"{BLOCK}.proj_in", f"{BLOCK}.proj_out", f"{BLOCK}.transformer_blocks.0.attn2.to_k")
SHORTCUT = "down_blocks.1.resnets.0.conv_shortcut"
RANK = 2


def network(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def written(unet: Any, file: Path, ndim: int, seed: int = 0, modules: tuple[str, ...] = (*MODULES, SHORTCUT)) -> Path:
    """A file of diffusers whose 1×1 layers all have matrices, or all have kernels."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for path in modules:
        rows, inputs = unet.get_submodule(path).weight.shape[:2]
        ones = [1] * (ndim - 2)
        tensors[f"unet.{path}.lora_A.weight"] = torch.randn(RANK, inputs, *ones, generator=generator)
        tensors[f"unet.{path}.lora_B.weight"] = torch.randn(rows, RANK, *ones, generator=generator)
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("ndim", [2, 4])
@pytest.mark.parametrize("config", [SD_1_5, SDXL], ids=["sd15", "sdxl"])
@pytest.mark.parametrize("format", ["diffusers", "peft", "kohya"])
def test_converted_files_have_the_shapes_of_the_modules(
    format: str, config: dict[str, Any], ndim: int, tmp_path: Path, cli: Cli
) -> None:
    unet = network(config)
    written(unet, tmp_path / "a.safetensors", ndim)
    assert cli("convert", tmp_path / "a.safetensors", tmp_path / "b", "--format", format).status == 0
    (file,) = (tmp_path / "b").glob("*.safetensors")
    tensors = load_file(file)
    stored = formats.read(tmp_path / "b").layers
    for path in (*MODULES, SHORTCUT):
        shape = tuple(unet.get_submodule(path).weight.shape)
        assert stored[f"unet.{path}"].shape == shape, path
    downs = [t.ndim for key, t in tensors.items() if key.endswith(("lora_A.weight", "lora_down.weight"))]
    weights = [unet.get_submodule(path).weight.ndim for path in (*MODULES, SHORTCUT)]
    assert sorted(downs) == sorted(weights)


def test_stack_of_either(tmp_path: Path, cli: Cli) -> None:
    unet = network(SD_1_5)
    for ndim, name in ((2, "a"), (4, "b")):
        written(unet, tmp_path / f"{name}.safetensors", ndim, seed=ndim)
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    result = cli("stack", *files, "--output", tmp_path / "c.safetensors")
    assert result.status == 0, result.err
    found = formats.read(tmp_path / "c.safetensors")
    for name, layer in found.layers.items():
        one, two = (load_file(file) for file in files)
        exact = sum(
            t[f"{name}.lora_B.weight"].double().flatten(1) @ t[f"{name}.lora_A.weight"].double().flatten(1)
            for t in (one, two)
        )
        torch.testing.assert_close(layer.delta().double().flatten(1), exact, rtol=1e-5, atol=1e-4)


PROJECTIONS = ("mid_block.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")


def test_merge_extract_and_load_of_either(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """The tiny base has convolutions."""
    for ndim in (2, 4):
        file = written(pipeline(tiny_base).unet, tmp_path / f"{ndim}.safetensors", ndim, modules=PROJECTIONS[:1])
        assert cli("merge", tiny_base, file, "--output", tmp_path / f"merged{ndim}").status == 0
    one, other = (load_file(tmp_path / f"merged{ndim}" / UNET) for ndim in (2, 4))
    assert all(torch.equal(one[key], other[key]) for key in one)
    pipe = pipeline(tiny_base)
    load(pipe, tmp_path / "2.safetensors")
    assert close(draw(pipe), draw(pipeline(tmp_path / "merged2")))

    linear = load_file(pack(tmp_path / "merged4", tmp_path / "tuned.safetensors"))
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    save_file(linear | {key: linear[key].flatten(1)}, tmp_path / "tuned.safetensors")
    tuned = tmp_path / "tuned.safetensors"
    result = cli("extract", tiny_base, tuned, "--rank", 2, "--output", tmp_path / "x.safetensors")
    assert result.status == 0, result.err
    assert "extracted  1 weights" in result.out
    assert cli("merge", tiny_base, tmp_path / "x.safetensors", "--output", tmp_path / "again").status == 0
    again = load_file(tmp_path / "again" / UNET)
    assert all(torch.allclose(again[key], one[key], rtol=1e-4, atol=1e-5) for key in one)


def test_kernels_that_are_written_as_matrices(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """Both factors as matrices, as ComfyUI reads them: they are those of the convolution."""
    generator, path = torch.Generator().manual_seed(0), "down_blocks.0.resnets.0.conv1"
    key = f"lora_unet_{path.replace('.', '_')}"

    def factors(rows: int, *rest: int) -> tuple[Path, Path]:
        down, up = torch.randn(RANK, *rest, generator=generator), torch.randn(rows, RANK, 1, 1, generator=generator)
        for name, ends in (("flat", (down.flatten(1), up.flatten(1))), ("whole", (down, up))):
            pair = dict(zip((f"{key}.lora_down.weight", f"{key}.lora_up.weight"), ends, strict=True))
            save_file(pair, tmp_path / f"{name}.safetensors")
        return tmp_path / "flat.safetensors", tmp_path / "whole.safetensors"

    for file in factors(320, 320, 3, 3):
        result = cli("convert", file, tmp_path / f"{file.stem}_converted.safetensors", "--format", "diffusers")
        assert result.status == 0, result.err
    flat, whole = (load_file(tmp_path / f"{name}_converted.safetensors") for name in ("flat", "whole"))
    assert flat.keys() == whole.keys() and all(torch.equal(flat[name], whole[name]) for name in whole)
    weight = pipeline(tiny_base).unet.get_submodule(path).weight
    for file in factors(*weight.shape):
        result = cli("merge", tiny_base, file, "--output", tmp_path / file.stem, "--family", "stable-diffusion-v1")
        assert result.status == 0, result.err
    flat, whole = (load_file(tmp_path / name / UNET) for name in ("flat", "whole"))
    assert all(torch.equal(flat[name], whole[name]) for name in whole)
    assert not torch.equal(flat[f"{path}.weight"], weight)
