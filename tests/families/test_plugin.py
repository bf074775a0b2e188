"""A family of another package, in one module: it works in every verb, and no line of ours knows it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import Cli, RecipeFile
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline

from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, extract, formats
from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.families import Architecture, Family, KohyaNames, License, Slot
from erasediff_lora.registry import FAMILIES

CONV, QUERY = "painter.conv_in", "painter.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


class Toy(StableDiffusion):
    """Stable Diffusion's code under another name."""

    @property
    def architecture(self) -> str:
        return "toy-1"


def toy_slots(keys: Any) -> dict[str, Slot]:
    names = (key.removesuffix(".weight") for key in keys if key.startswith("toy/"))
    return {f"painter.{name.removeprefix('toy/')}": Slot(f"{name}.weight") for name in names}


TOY = Family(
    denoiser=Toy,
    pipeline="ToyPipeline",
    component="painter",
    encoders=("reader",),
    modules=("conv_in", "mid_block."),
    architectures=(Architecture("toy-1", 32, License("mit"), kohya="toy"),),
    recognise=lambda shapes: "toy-1" if any(name.startswith("painter.") for name in shapes) else None,
    kohya=KohyaNames({"painter": "lora_painter_"}, ("mid_block", "conv_in", "transformer_blocks", "to_q")),
    single_file=toy_slots,
    in_diffusers=False,
)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Family:
    """As an entry point of another package would register it."""
    point = EntryPoint("toy", f"{__name__}:TOY", "erasediff_lora.families")
    monkeypatch.setitem(FAMILIES.__dict__, "_plugins", {"toy": point})
    monkeypatch.setattr(FAMILIES, "_loaded", dict(FAMILIES._loaded))
    return FAMILIES["toy"]


@pytest.fixture
def adapter() -> LoraAdapter:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return LoraAdapter(
        {
            CONV: LoraLayer(random(2, 4, 3, 3), random(8, 2, 1, 1), 2.0),
            QUERY: LoraLayer(random(2, 6), random(6, 2), 2.0),
        },
        Provenance(concepts=("cat",)),
    )


@pytest.fixture
def single_file(tmp_path: Path) -> Path:
    weights = {"toy/conv_in.weight": torch.ones(8, 4, 3, 3)}
    weights["toy/mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"] = torch.ones(6, 6)
    save_file(weights, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def test_files_in_every_format(toy: Family, adapter: LoraAdapter, tmp_path: Path, cli: Cli) -> None:
    assert adapter.architecture == "toy-1"
    assert formats.suited(adapter) == ["diffusers", "kohya", "peft"]
    for name in formats.suited(adapter):
        formats.write(adapter, tmp_path / name, name)
        kind, back = formats.read_as(tmp_path / name)
        assert kind == name and back.architecture == "toy-1"
        assert back.layers.keys() == adapter.layers.keys()
        assert all(torch.equal(back.layers[n].delta(), layer.delta()) for n, layer in adapter.layers.items())
        shown = cli("inspect", tmp_path / name)
        assert shown.status == 0 and "toy-1" in shown.out and "painter (2 weights)" in shown.out
    assert cli("convert", tmp_path / "kohya", tmp_path / "again", "--format", "diffusers").status == 0
    assert cli("stack", tmp_path / "peft", tmp_path / "kohya", "--output", tmp_path / "both").status == 0
    peft = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert peft["target_modules"] == sorted(name.removeprefix("painter.") for name in adapter.layers)


def test_peft_files_of_others_are_told_by_their_modules(toy: Family, adapter: LoraAdapter, tmp_path: Path) -> None:
    formats.write(adapter, tmp_path, "peft")
    save_file(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    assert formats.read(tmp_path).components == ["painter"]


def test_merge_and_extract_of_its_single_files(
    toy: Family, adapter: LoraAdapter, single_file: Path, tmp_path: Path, cli: Cli
) -> None:
    formats.write(adapter, tmp_path / "a", "kohya")
    merged = tmp_path / "merged.safetensors"
    result = cli("merge", single_file, tmp_path / "a", "--output", merged)
    assert result.status == 0, result.err
    before, after = load_file(single_file), load_file(merged)
    assert torch.allclose(after["toy/conv_in.weight"], before["toy/conv_in.weight"] + adapter.layers[CONV].delta())
    found = extract(single_file, merged, rank=2)
    assert found.adapter.architecture == "toy-1"
    for name, layer in adapter.layers.items():
        assert torch.allclose(found.adapter.layers[name].delta(), layer.delta(), atol=1e-4)


def test_its_card(toy: Family, adapter: LoraAdapter, tmp_path: Path, cli: Cli) -> None:
    formats.write(adapter, tmp_path / "a", "diffusers")
    assert cli("publish", tmp_path / "a", "--repo", "me/toy", "--dry_run").status == 0
    card = ModelCard.load(tmp_path / "a/hub/README.md")
    assert card.data.license == "mit"
    assert "from diffusers import" not in card.text and 'PeftModel.from_pretrained(painter, "me/toy"' in card.text


def test_a_run_on_a_base_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe_file: RecipeFile, cli: Cli
) -> None:
    """Trained, evaluated and published by Stable Diffusion's code in its name."""
    family = replace(TOY, component="unet", encoders=("text_encoder",), modules=("down_blocks.",), kohya=None)
    monkeypatch.setitem(FAMILIES._loaded, "toy_unet", family)
    monkeypatch.setitem(FAMILIES._builtin, "toy_unet", f"{__name__}:TOY")
    tiny_pipeline().save_pretrained(tmp_path / "base")
    index = tmp_path / "base/model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "ToyPipeline"))
    model = {"base": str(tmp_path / "base")}
    result = cli("train", recipe_file(model=model))
    assert result.status == 2 and "Set model.family: toy_unet." in result.err

    file = recipe_file(model=model | {"family": "toy_unet"})
    result = cli("train", file)
    assert result.status == 0, result.err
    run = Path(yaml.safe_load(file.read_text())["output"])
    adapter = formats.read(run)
    assert adapter.architecture == "toy-1" and adapter.components == ["unet"]
    assert formats.suited(adapter) == ["diffusers", "peft"]
    assert (run / "evaluation.json").is_file()
    assert cli("merge", tmp_path / "base", run, "--output", tmp_path / "merged").status == 0
    assert cli("publish", run, "--repo", "me/toy", "--dry_run").status == 0
    assert ModelCard.load(run / "hub/README.md").data.license == "mit"
