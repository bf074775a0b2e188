"""What is said of other programs: against the loader of the one that is installed, and on the command line."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import programs_table
import pytest
import torch
from adapters import pipeline, random_adapter
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file, save_file

from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, formats
from erasediff_lora.adapter.programs import losses_in
from erasediff_lora.cli.losses import lines_of_folder
from erasediff_lora.registry import PROGRAMS

UNET = "unet.mid_block.attentions.0"
Q, PROJ, CONV = f"{UNET}.transformer_blocks.0.attn2.to_q", f"{UNET}.proj_in", "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.0.mlp.fc1"
ORIGIN = Provenance(architecture="stable-diffusion-v1", concepts=("cat",))


def layer(alpha: float = 2.0, rank: int = 2) -> LoraLayer:
    return LoraLayer(torch.ones(rank, 8), torch.ones(8, rank), alpha)


def written(folder: Path, format: str, layers: dict[str, LoraLayer], architecture: str = "stable-diffusion-v1") -> Path:
    file, *_ = formats.write(LoraAdapter(layers, Provenance(architecture=architecture)), folder / format, format)
    return file


def said(cli: Cli, program: str, file: Path) -> list[str]:
    """What `inspect --for` says of a file."""
    result = cli("inspect", "--for", program, file)
    assert result.status == 0, result.err
    return [line for line in result.out.splitlines() if line.startswith(f"{program} ")]


def test_what_no_possible_family_has_is_lost(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """A tiny model's file does not tell which of Stable Diffusion's versions it is for, and A1111 reads none so."""
    file, *_ = formats.write(random_adapter(tiny_base), tmp_path / "a.safetensors", "diffusers")
    save_file(load_file(file), file)
    assert formats.describe(file)[1].architecture is None
    (line,) = said(cli, "a1111", file)
    assert "all 32 layers not read: it reads no diffusers files of stable_diffusion" in line


def test_the_page_is_made_of_the_table() -> None:
    assert programs_table.PAGE.read_text() == programs_table.page(), "run scripts/benchmarks/programs_table.py"


def test_every_limit_names_its_place_in_the_code() -> None:
    for program in PROGRAMS.values():
        assert program.version and program.repository.startswith("https://")
        for limit in program.limits:
            assert limit.are in ("not read", "read otherwise")
            assert ".py" in limit.source or "/" in limit.source
            assert limit.remedy.endswith(".") and not limit.why.endswith(".")
            assert set(limit.formats) <= program.reads.keys()


DORA = replace(layer(), magnitude=torch.ones(8))
CASES: dict[str, tuple[str, str, dict[str, LoraLayer], list[str]]] = {
    "all is read": ("comfyui", "kohya", {Q: layer(), TEXT: layer()}, ["nothing is lost of 2 layers"]),
    "DoRA in ComfyUI": ("comfyui", "kohya", {Q: DORA, PROJ: layer()}, ["1 of 2 layers", "--as lora"]),
    "DoRA in A1111": ("a1111", "kohya", {Q: DORA}, ["the only layer", "read otherwise"]),
    "DoRA in diffusers": ("diffusers", "kohya", {Q: DORA}, ["0.31 to 0.42.1", "--format diffusers"]),
    "DoRA in peft's spelling": ("diffusers", "diffusers", {Q: DORA}, ["nothing is lost"]),
    "alphas": ("diffusers", "kohya", {Q: layer(4.0), PROJ: layer(), CONV: layer()}, ["1 of 3 layers", "alphas"]),
    "attention": ("comfyui", "diffusers", {Q: layer(), PROJ: layer()}, ["1 of 2 layers", "not read", "--format kohya"]),
    "a few tensors left over": ("forge", "diffusers", {Q: layer(), PROJ: layer()}, ["1 of 2 layers", "not read"]),
    "ranks": ("diffusers", "diffusers", {PROJ: layer(), Q: layer(rank=3)}, ["before 0.34", "1 of 2 layers", "--rank"]),
    "other formats": ("invokeai", "diffusers", {Q: layer()}, ["reads no diffusers files", "--format kohya"]),
    "no hint of the base": ("invokeai", "kohya", {PROJ: layer(), CONV: layer()}, ["all 2 layers", "not read"]),
    "outside of the blocks": ("kohya", "kohya", {"unet.conv_in": layer(), Q: layer()}, ["1 of 2 layers", "merge"]),
}


@pytest.mark.parametrize(("program", "format", "layers", "words"), CASES.values(), ids=CASES)
def test_inspect_for_a_program(
    program: str, format: str, layers: dict[str, LoraLayer], words: list[str], tmp_path: Path, cli: Cli
) -> None:
    (line,) = said(cli, program, written(tmp_path, format, layers))
    assert not [word for word in words if word not in line], line


def test_forge_refuses_what_leaves_much_over(tmp_path: Path, cli: Cli) -> None:
    names = [f"unet.up_blocks.1.attentions.{i}.transformer_blocks.0.attn1.to_{x}" for i in range(3) for x in "qkv"]
    (line,) = said(cli, "forge", written(tmp_path, "diffusers", {name: layer() for name in [*names, PROJ]}))
    assert "all 10 layers not read" in line and "more than 12 tensors, and finds 18" in line


def test_stable_diffusion_3(tmp_path: Path, cli: Cli) -> None:
    block = "transformer.transformer_blocks.0"
    names = (f"{block}.attn.to_q", f"{block}.attn.add_k_proj", "text_encoder_3.encoder.block.0.layer.0.SelfAttention.q")
    file = written(tmp_path, "diffusers", {name: layer() for name in names}, "stable-diffusion-3")
    assert "1 of 3 layers (T5) not read" in said(cli, "comfyui", file)[0]
    assert "2 of 3 layers" in said(cli, "a1111", file)[0]
    assert "reads no diffusers files of stable_diffusion_3. Merge" in said(cli, "forge", file)[0]


def test_a_foreign_file_with_alpha_in_the_header(tmp_path: Path, cli: Cli) -> None:
    tensors = {f"transformer.transformer_blocks.0.attn.to_q.lora_{n}.weight": torch.ones(4, 4) for n in "AB"}
    fields = '{"transformer.r": 4, "transformer.lora_alpha": 2}'
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "lora_adapter_metadata": fields})
    for program in ("comfyui", "diffusers"):
        (line,) = said(cli, program, tmp_path / "a.safetensors")
        assert "read otherwise: alpha stands" in line and "convert --format diffusers" in line
    assert cli("convert", tmp_path / "a.safetensors", tmp_path / "b", "--format", "diffusers").status == 0
    assert "nothing is lost" in said(cli, "comfyui", tmp_path / "b")[0]


def test_all_programs_and_unknown_ones(tmp_path: Path, cli: Cli) -> None:
    file = written(tmp_path, "kohya", {Q: layer()})
    result = cli("inspect", file, "--for", "all")
    assert [line.split()[0] for line in result.out.splitlines()[-len(PROGRAMS) :]] == list(PROGRAMS)
    refused(cli("inspect", file, "--for", "comfy"), "--for = 'comfy'", "comfyui")


def test_convert_says_what_is_lost(tmp_path: Path, cli: Cli) -> None:
    file = written(tmp_path, "peft", {Q.replace("to_q", "to_k"): DORA})
    result = cli("convert", file.parent, tmp_path / "k.safetensors", "--format", "kohya")
    assert result.status == 0, result.err
    *lines, last = result.out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["diffusers", "comfyui", "a1111", "forge", "invokeai", "kohya"]
    assert all("DoRA" in line for line in lines)
    assert last.startswith("peft 0.21.2: do not read this file")


def test_a_folder_of_all_formats_is_judged_by_the_best_one(tmp_path: Path) -> None:
    """As after training: every program is given the file that suits it."""
    adapter = LoraAdapter({Q.replace("to_q", "to_k"): layer(), PROJ: layer()}, ORIGIN)
    for format in ("diffusers", "kohya", "peft"):
        formats.write(adapter, tmp_path, format)
    assert lines_of_folder(tmp_path) == []
    dora = LoraAdapter({name: replace(one, magnitude=torch.ones(8)) for name, one in adapter.layers.items()}, ORIGIN)
    for format in ("diffusers", "kohya", "peft"):
        formats.write(dora, tmp_path, format, overwrite=True)
    lines = lines_of_folder(tmp_path)
    assert [line.split()[2] for line in lines] == ["comfyui", "a1111", "forge", "invokeai", "kohya"]
    assert all(line.startswith("erase-cat.safetensors in ") for line in lines)


@pytest.mark.parametrize("is_dora", [False, True])
def test_diffusers_does_what_is_said_of_it(is_dora: bool, tiny_base: Path, tmp_path: Path, caplog: Any) -> None:
    """A kohya file with several alphas: the layers of other strength are those that are counted, or all of DoRA."""
    caplog.set_level(logging.ERROR)
    pipe = pipeline(tiny_base)
    generator = torch.Generator().manual_seed(0)
    layers: dict[str, LoraLayer] = {}
    for component in ("unet", "text_encoder"):
        for path, module in getattr(pipe, component).named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and ("block" in path or "layers" in path):
                out, *inner = module.weight.shape
                ones = [1] * (len(inner) - 1)
                layers[f"{component}.{path}"] = LoraLayer(
                    torch.randn(3, *inner, generator=generator),
                    torch.randn(out, 3, *ones, generator=generator),
                    3.0 if is_dora else (3.0, 1.5, 6.0)[len(layers) % 3],
                    magnitude=(torch.ones(1, out, 1, 1) if ones else torch.ones(out)) if is_dora else None,
                )
    file, *_ = formats.write(LoraAdapter(layers, ORIGIN), tmp_path, "kohya")
    name, stored = formats.describe(file)
    expected = sum(loss.layers[0] for loss in losses_in("diffusers", name, stored) if "before" not in loss.version)
    pipe.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="a")
    differing = 0
    for component in ("unet", "text_encoder"):
        for path, module in getattr(pipe, component).named_modules():
            if hasattr(module, "lora_A"):
                own = layers.pop(f"{component}.{path}")
                same = torch.allclose(module.get_delta_weight("a"), own.delta(), rtol=1e-4, atol=1e-4)
                differing += not same or bool(is_dora and not module.use_dora.get("a"))
    assert not layers
    assert differing == expected > 10


def test_a_spelling_that_was_not_looked_at(tmp_path: Path, cli: Cli) -> None:
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_q_lora"
    tensors = {f"{key}.down.weight": torch.ones(2, 1280), f"{key}.up.weight": torch.ones(1280, 2)}
    save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": "sd_v1"})
    (line,) = said(cli, "comfyui", tmp_path / "a.safetensors")
    assert "the only layer not known to be read" in line and "convert --format kohya" in line


def test_stack_says_it_too(tmp_path: Path, cli: Cli) -> None:
    file = written(tmp_path, "kohya", {Q: layer()})
    for words in (("stack", file), ("stack", file, "--format", "kohya")):
        result = cli(*words, "--output", tmp_path / f"out{len(words)}")
        assert result.status == 0, result.err
        assert "do not read this file" in result.out.splitlines()[-1]


def test_train_says_which_programs_read_the_adapter_otherwise(recipe_file: RecipeFile, cli: Cli) -> None:
    result = cli("train", recipe_file(), "--adapter.dora", "true")
    assert result.status == 0, result.err
    lines = [line for line in result.out.splitlines() if line.startswith("erase-cat.safetensors in ")]
    assert [line.split()[2] for line in lines] == ["comfyui", "a1111", "forge", "invokeai", "kohya"]
    assert all("DoRA" in line and "read otherwise" in line for line in lines)
