"""Strengths behind paths, names of outputs, and what is claimed of adapters that are no erasures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import inject, pipeline
from fixtures import Cli
from huggingface_hub import ModelCard
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from erasediff_lora.adapter import Weighted, formats, load
from erasediff_lora.errors import UserError

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def style(file: Path) -> Path:
    """Another person's LoRA, as sd-scripts writes it."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{KEY}.lora_down.weight": torch.randn(4, 768, generator=generator),
        f"{KEY}.lora_up.weight": torch.randn(320, 4, generator=generator),
        f"{KEY}.alpha": torch.tensor(4.0),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {"ss_base_model_version": "sd_v1", "ss_output_name": "Water colour: v2"})
    return file


def norm(file: Path) -> float:
    tensors = load_file(file)
    down, up = (tensors[f"{KEY}.lora_{name}.weight"].double() for name in ("down", "up"))
    return float((up @ down * float(tensors[f"{KEY}.alpha"]) / 4).norm())


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "NaN", "Infinity", "1e999"])
def test_strengths_are_finite(number: str, tmp_path: Path, cli: Cli) -> None:
    file = style(tmp_path / "a.safetensors")
    for verb in (("stack",), ("merge", tmp_path)):
        refused(cli(*verb, f"{file}:{number}", "--output", tmp_path / "out"), "strength", f"of {file} is not finite")
    with pytest.raises(UserError, match="is not finite"):
        Weighted.read(file, float(number))
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_a_path(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also `~`, and a colon of Windows."""
    monkeypatch.setenv("HOME", str(tmp_path))
    whole = norm(style(tmp_path / "lora_12:30/a.safetensors"))
    style(tmp_path / "C:/x/a.safetensors")
    monkeypatch.chdir(tmp_path)
    for given, strength in (
        ("lora_12:30", 1),
        ("~/lora_12:30", 1),
        ("lora_12:30:0.5", 0.5),
        ("lora_12:30:+2.", 2),
        ("lora_12:30:-1e-1", 0.1),
        ("C:/x/a.safetensors", 1),
        ("C:/x:.5", 0.5),
    ):
        result = cli("stack", given, "--output", "out.safetensors", "--format", "kohya", "--overwrite")
        assert result.status == 0, result.err
        assert norm(Path("out.safetensors")) == pytest.approx(strength * whole), given


@pytest.mark.parametrize("number", ["much", "", "1_0", "0,5"])
def test_a_strength_that_is_no_number(number: str, tmp_path: Path, cli: Cli) -> None:
    file = style(tmp_path / "a.safetensors")
    refused(cli("stack", f"{file}:{number}", "--output", tmp_path / "out"), "is no number", "a.safetensors:0.8")


@pytest.mark.parametrize("name", ["o.ckpt", "o.pt", "o.bin", "o.SAFETENSORS", "o.safetensor", "taken"])
@pytest.mark.parametrize("verb", ["convert", "stack", "extract"])
def test_no_folder_is_made_of_a_file_name(verb: str, name: str, tmp_path: Path, cli: Cli) -> None:
    file = style(tmp_path / "a.safetensors")
    (tmp_path / "taken").write_text("notes")
    before = sorted(tmp_path.iterdir())
    words = {
        "convert": ("convert", file, tmp_path / name),
        "stack": ("stack", file, "--output", tmp_path / name),
        "extract": ("extract", tmp_path / "base", tmp_path / "tuned", "--rank", 4, "--output", tmp_path / name),
    }
    remedy = f"Write {Path(name).with_suffix('.safetensors')}, or the name of a folder"
    refused(cli(*words[verb], "--format", "kohya"), "names a file that is no safetensors file", remedy)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_may_have_a_dot(tmp_path: Path, cli: Cli) -> None:
    file = style(tmp_path / "a.safetensors")
    (tmp_path / "old.pt").mkdir()
    for folder in ("v1.5", "old.pt"):
        assert cli("convert", file, tmp_path / folder, "--format", "diffusers").status == 0
        assert (tmp_path / folder / "pytorch_lora_weights.safetensors").is_file()


def test_nothing_is_claimed_of_another_persons_style(tmp_path: Path, cli: Cli) -> None:
    style(tmp_path / "run/style.safetensors")
    assert cli("convert", tmp_path / "run", tmp_path / "out", "--format", "kohya").status == 0
    with safe_open(tmp_path / "out/Water-colour-v2.safetensors", "pt") as stored:
        header = stored.metadata()
    assert not {"modelspec.description", "modelspec.usage_hint"} & header.keys()
    result = cli("publish", tmp_path / "run", "--repo", "me/style", "--dry_run")
    assert result.status == 0, result.err
    card = ModelCard.load(tmp_path / "run/hub/README.md")
    said = f"{card.content} {header} {result.out}".lower().replace("erasediff", "").replace("concept erasure for", "")
    assert not [word for word in ("erase", "erasure", "concept", "trigger", "no longer draws") if word in said]
    assert not {"concept-erasure", "erasediff"} & set(card.data.tags)
    refused(
        cli("publish", tmp_path / "run", "--repo", "me/style", "--dry_run", "--public"),
        "it is recorded nowhere that it erases anything",
    )


def test_publish_takes_the_family_where_the_file_does_not_tell(tmp_path: Path, cli: Cli) -> None:
    """A text encoder that several families have."""
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    (tmp_path / "run").mkdir()
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 768), f"{name}.lora_up.weight": torch.ones(3072, 2)}
    save_file(tensors, tmp_path / "run/style.safetensors")
    command = ("publish", tmp_path / "run", "--repo", "me/style", "--dry_run")
    refused(cli(*command, "--family", "sdxl"), "--family = 'sdxl': is unknown.")
    for family, license, named in (
        ("stable-diffusion-xl-v1-base", "openrail++", "StableDiffusionXLPipeline"),
        ("stable-diffusion-3", "other", "StableDiffusion3Pipeline"),
    ):
        result = cli(*command, "--family", family)
        assert result.status == 0, result.err
        card = ModelCard.load(tmp_path / "run/hub/README.md")
        assert card.data.license == license and named in card.content
    result = cli(*command)
    assert result.status == 0 and "licence of the base is unknown" in result.err
    assert ModelCard.load(tmp_path / "run/hub/README.md").data.license is None
    for mine in ("a", "lora", "adapter", "notes.md"):  # words of the card among them
        (tmp_path / "run/hub" / mine).write_text("mine")
        refused(cli(*command), f"holds {mine}, which is not of this program", "Move that away.")
        assert (tmp_path / "run/hub" / mine).read_text() == "mine"
        (tmp_path / "run/hub" / mine).unlink()


def test_load_asks_the_pipeline_what_the_file_does_not_tell(tiny_base: Path, tmp_path: Path) -> None:
    """A header that names a family of another program, above layers that the pipeline has."""
    pipe, file = pipeline(tiny_base), tmp_path / "a.safetensors"
    formats.write(inject(pipeline(tiny_base)), file, "diffusers")
    save_file(load_file(file), tmp_path / "b.safetensors", {"modelspec.architecture": "chroma/lora"})
    with pytest.raises(UserError, match="looks like a file for Chroma"):
        formats.read(tmp_path / "b.safetensors")
    load(pipe, tmp_path / "b.safetensors", base=tiny_base)
    assert pipe.get_active_adapters() == ["erasure"]
    with pytest.raises(UserError, match="stable-diffusion-3"):
        load(pipe, file, name="other", base=tiny_base, family="stable-diffusion-3")
