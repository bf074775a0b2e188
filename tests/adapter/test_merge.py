"""Merging into folders, single files and bare UNets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import close, draw, inject, pipeline, random_adapter
from diffusers import StableDiffusionPipeline
from fixtures import Cli, RecipeFile
from huggingface_hub import ModelCard
from refusals import refused
from safetensors.torch import load_file, save_file
from single_file import pack
from torch import Tensor

from erasediff_lora import demo
from erasediff_lora.adapter import Checkpoint, LoraAdapter, LoraLayer, Provenance, fingerprint, formats

FAMILY = ("--family", "stable-diffusion-v1")  # which a small model does not tell
UNET = "unet/diffusion_pytorch_model.safetensors"


def header(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))


def single(file: Path, config: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_single_file(
        str(file), config=str(config), local_files_only=True, safety_checker=None, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_single_file_of_the_demo_model_draws_what_the_folder_draws(tmp_path: Path, cli: Cli) -> None:
    pipe = pipeline(demo.MODEL_DIR)
    plain = draw(pipe)
    formats.write(inject(pipe), tmp_path / "adapter", "kohya")
    file = pack(demo.MODEL_DIR, tmp_path / "demo.safetensors")
    result = cli("merge", file, tmp_path / "adapter", "--output", tmp_path / "merged.safetensors")
    assert result.status == 0, result.err
    result = cli("merge", demo.MODEL_DIR, tmp_path / "adapter", "--output", tmp_path / "merged")
    assert result.status == 0, result.err
    from_file = draw(single(tmp_path / "merged.safetensors", demo.MODEL_DIR))
    assert close(from_file, draw(pipeline(tmp_path / "merged")))
    assert not close(from_file, plain, 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_sum_is_rounded_once_and_all_else_stays(dtype: Any, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    file = pack(tiny_base, tmp_path / "model.safetensors", dtype, {"note": "keep me"})
    one = random_adapter(tiny_base, "attention_feed_forward_convolutions", 2.5)
    two = random_adapter(tiny_base, "attention", 4.0, rank=2, seed=3)
    formats.write(one, tmp_path / "one", "peft")
    formats.write(two, tmp_path / "two", "kohya")
    out = tmp_path / "out.safetensors"
    before = file.read_bytes()
    result = cli("merge", file, tmp_path / "one:0.5", f"{tmp_path / 'two'}:1", "--output", out)
    assert result.status == 0, result.err
    assert file.read_bytes() == before
    before_header, after_header = header(file), header(out)
    notes = json.loads(after_header.pop("__metadata__").pop("erasediff.merged"))
    assert [note["strength"] for note in notes] == [0.5, 1.0] and [note["adapter"] for note in notes] == ["one", "two"]
    assert before_header.pop("__metadata__") == {"note": "keep me"} and after_header == before_header

    old, new, slots = load_file(file), load_file(out), Checkpoint(file).files[0].slots
    exact: dict[str, Tensor] = {}
    for adapter, strength in ((one, 0.5), (two, 1.0)):
        for name, layer in adapter.layers.items():
            delta = (layer.up.double().flatten(1) @ layer.down.double().flatten(1)).reshape(layer.shape)
            key = slots[name].key
            exact[key] = exact.get(key, old[key].double()) + strength * layer.scale * delta
    assert len(exact) == len(one.layers)
    for key, tensor in old.items():
        if key not in exact:
            assert torch.equal(new[key], tensor), key
            continue
        half_step = torch.finfo(dtype).eps / 2 * exact[key].abs()
        float32_error = 0 if dtype == torch.float64 else 1e-6 * float(exact[key].abs().max())
        assert bool(((new[key].double() - exact[key]).abs() <= half_step + float32_error + 1e-12).all()), key


def test_folder_keeps_its_other_files_and_drops_unerased_copies(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_base, model)
    (model / "README.md").write_text("notes")
    unet = load_file(model / UNET)
    half = {key: tensor.half() for key, tensor in unet.items()}
    save_file(half, model / "unet/diffusion_pytorch_model.fp16.safetensors")
    torch.save(unet, model / "unet/diffusion_pytorch_model.bin")
    pack(tiny_base, model / "whole.safetensors")
    save_file({"other": torch.ones(2)}, model / "judge.safetensors")
    adapter = random_adapter(tiny_base)
    formats.write(adapter, tmp_path / "adapter", "peft")
    result = cli("merge", model, tmp_path / "adapter", "--output", tmp_path / "out")
    assert result.status == 0, result.err
    assert "they hold the model before merging: unet/diffusion_pytorch_model.bin, whole.safetensors" in result.err
    assert "note: not copied, as they tell of the model before merging: README.md" in result.err
    files = {p.relative_to(model) for p in model.rglob("*") if p.is_file()}
    left = {Path("unet/diffusion_pytorch_model.bin"), Path("whole.safetensors")}
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file()} == files - left
    variants = {Path(UNET), Path("unet/diffusion_pytorch_model.fp16.safetensors")}
    for inside in files - left - variants - {Path("README.md")}:
        assert (tmp_path / "out" / inside).read_bytes() == (model / inside).read_bytes(), inside
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    for variant, original in ((UNET, unet), ("unet/diffusion_pytorch_model.fp16.safetensors", half)):
        merged = load_file(tmp_path / "out" / variant)[f"{key}.weight"]
        expected = (original[f"{key}.weight"].float() + adapter.layers[f"unet.{key}"].delta()).to(merged.dtype)
        assert torch.allclose(merged.float(), expected.float(), rtol=1e-3, atol=1e-6)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_the_card_of_a_merged_model_says_what_was_done_and_nothing_else(tmp_path: Path, cli: Cli) -> None:
    """The demo's own card praises the cats that it draws, with numbers and a picture."""
    origin = Provenance(concepts=("cat",), base_fingerprint=fingerprint(Checkpoint(demo.MODEL_DIR)))
    formats.write(inject(pipeline(demo.MODEL_DIR), provenance=origin), tmp_path / "erase_cat", "peft")
    formats.write(inject(pipeline(demo.MODEL_DIR), provenance=Provenance()), tmp_path / "other|one", "peft")
    arguments = (f"{tmp_path / 'erase_cat'}:0.8", tmp_path / "other|one", *FAMILY)
    result = cli("merge", demo.MODEL_DIR, *arguments, "--output", tmp_path / "out")
    assert result.status == 0, result.err
    assert "tell of the model before merging: README.md, contact_sheet.webp, measured.json" in result.err
    assert not any((tmp_path / "out" / name).exists() for name in ("measured.json", "contact_sheet.webp"))
    assert (tmp_path / "out/judge.safetensors").read_bytes() == demo.JUDGE_FILE.read_bytes()
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.to_dict() | {"erasediff.merged": 0} == {
        "license": "apache-2.0", "library_name": "diffusers", "erasediff.merged": 0
    }  # fmt: skip
    said = [
        {"adapter": "erase_cat", "strength": 0.8, "concepts": ["cat"]},
        {"adapter": "other|one", "strength": 1.0, "concepts": []},
    ]
    assert card.data["erasediff.merged"] == said
    assert "| erase\\_cat | 0.8 | cat | yes |" in card.text
    assert "| other\\|one | 1 | nothing is recorded | unknown |" in card.text
    assert "keep it from drawing cat. Whether they do was not measured" in card.text
    assert "that of the base, apache-2.0, as its card says" in card.text
    assert "%" not in card.text and str(tmp_path) not in card.text and "contact\\_sheet.webp" in card.text

    result = cli("merge", tmp_path / "out", *arguments, "--unmerge", "--output", tmp_path / "back")
    assert result.status == 0, result.err
    card = ModelCard.load(tmp_path / "back/README.md")
    assert [entry["strength"] for entry in card.data["erasediff.merged"]] == [0.8, 1.0, -0.8, -1.0]
    assert "adapters taken out" in card.text and "keep it from drawing" not in card.text


@pytest.mark.parametrize(
    "text", ["", "---\na: [\n---\n", "---\nlicense: [1]\n---", "---\n- 1\n---\n", "\0" * 2_000_000]
)
def test_a_base_with_a_damaged_card_or_none(text: str, tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    model = tmp_path / "models--some--base/snapshots/abc"
    shutil.copytree(tiny_base, model)
    (model / "README.md").write_text(text)
    formats.write(random_adapter(tiny_base), tmp_path / "adapter", "peft")
    result = cli("merge", model, tmp_path / "adapter", "--output", tmp_path / "out")
    assert result.status == 0, result.err
    card = (tmp_path / "out/README.md").read_text()
    assert "# some/base, with adapters merged in" in card and "which is not known here" in card
    assert "license" not in ModelCard.load(tmp_path / "out/README.md").data.to_dict()


def test_hashes_of_the_weights_as_they_were_are_left_out(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    notes = {"modelspec.hash_sha256": "0x1", "sshs_model_hash": "1", "modelspec.title": "Base", "erasediff.merged": "["}
    file = pack(tiny_base, tmp_path / "model.safetensors", torch.float16, notes)
    formats.write(random_adapter(tiny_base), tmp_path / "adapter", "kohya")
    for number, source in enumerate((file, tmp_path / "0.safetensors")):
        out = tmp_path / f"{number}.safetensors"
        result = cli("merge", source, tmp_path / "adapter", "--output", out)
        assert result.status == 0, result.err
        metadata = header(out)["__metadata__"]
        assert metadata.keys() == {"modelspec.title", "erasediff.merged"}
        assert len(json.loads(metadata["erasediff.merged"])) == number + 1
        assert out.stat().st_size % 4096 == file.stat().st_size % 4096  # the values lie as they lay in their pages


def test_sharded_folder_and_bare_unet(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    sharded = tmp_path / "sharded"
    shutil.copytree(tiny_base, sharded)
    unet = load_file(sharded / UNET)
    (sharded / UNET).unlink()
    keys = sorted(unet)
    shards = {"-00001-of-00002": keys[: len(keys) // 2], "-00002-of-00002": keys[len(keys) // 2 :]}
    index: dict[str, str] = {}
    for end, names in shards.items():
        name = f"diffusion_pytorch_model{end}.safetensors"
        save_file({key: unet[key] for key in names}, sharded / "unet" / name, {"format": "pt"})
        index |= dict.fromkeys(names, name)
    (sharded / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": index})
    )
    formats.write(random_adapter(tiny_base), tmp_path / "adapter", "diffusers")
    assert cli("merge", tiny_base, tmp_path / "adapter", "--output", tmp_path / "plain").status == 0
    assert cli("merge", sharded, tmp_path / "adapter", "--output", tmp_path / "out").status == 0
    assert torch.equal(draw(pipeline(tmp_path / "out")), draw(pipeline(tmp_path / "plain")))
    assert fingerprint(Checkpoint(sharded)) == fingerprint(Checkpoint(tiny_base))

    bare = tmp_path / "unet.safetensors"
    shutil.copy(tiny_base / UNET, bare)
    assert cli("merge", bare, tmp_path / "adapter", "--output", tmp_path / "bare_out.safetensors").status == 0
    lone, whole = load_file(tmp_path / "bare_out.safetensors"), load_file(tmp_path / "plain" / UNET)
    assert lone.keys() == whole.keys() and all(torch.equal(lone[key], whole[key]) for key in lone)


def test_open_clip_text_encoder_in_a_single_file(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    """Query, key and value share one tensor there, as in Stable Diffusion 2 and XL."""
    file = tmp_path / "model.safetensors"
    unet = {k: v for k, v in load_file(pack(tiny_base, file)).items() if k.startswith("model.diffusion_model.")}
    block = "cond_stage_model.model.transformer.resblocks.0."
    text = {f"{block}attn.in_proj_weight": torch.zeros(96, 32), f"{block}mlp.c_fc.weight": torch.zeros(64, 32)}
    save_file(unet | text, file)
    names = {"self_attn.k_proj": 32, "self_attn.v_proj": 32, "mlp.fc1": 64}
    layers = {
        f"text_encoder.encoder.layers.0.{name}": LoraLayer(torch.randn(2, 32), torch.randn(rows, 2), 1.0)
        for name, rows in names.items()
    }
    formats.write(LoraAdapter(layers, Provenance(architecture="stable-diffusion-v1")), tmp_path / "a", "kohya")
    result = cli("merge", file, tmp_path / "a", "--output", tmp_path / "out.safetensors")
    assert result.status == 0, result.err
    merged = load_file(tmp_path / "out.safetensors")
    key, value, fc1 = (layers[f"text_encoder.encoder.layers.0.{name}"].delta() for name in names)
    assert torch.allclose(merged[f"{block}attn.in_proj_weight"], torch.cat([torch.zeros(32, 32), key, value]))
    assert torch.allclose(merged[f"{block}mlp.c_fc.weight"], fc1)


def test_fingerprint_knows_the_base_in_any_file(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    mark = fingerprint(Checkpoint(tiny_base))
    assert fingerprint(Checkpoint(pack(tiny_base, tmp_path / "a.safetensors"))) == mark
    assert fingerprint(Checkpoint(pack(tiny_base, tmp_path / "b.safetensors", torch.float16))) == mark
    formats.write(random_adapter(tiny_base), tmp_path / "adapter", "kohya")
    assert cli("merge", tiny_base, tmp_path / "adapter", "--output", tmp_path / "merged").status == 0
    assert fingerprint(Checkpoint(tmp_path / "merged")) != mark


def test_another_base_warns_and_strict_refuses(
    recipe_file: RecipeFile, tiny_base: Path, tmp_path: Path, cli: Cli
) -> None:
    assert cli("train", recipe_file()).status == 0
    run = tmp_path / "run"
    result = cli("merge", tiny_base, run, "--output", tmp_path / "own", "--strict")
    assert result.status == 0, result.err
    assert "warning" not in result.err
    result = cli("merge", tmp_path / "own", run, "--output", tmp_path / "twice")
    assert result.status == 0
    assert f"base = '{tmp_path / 'own'}' is not the base that the adapter was trained on, tiny" in result.err
    refused(
        cli("merge", tmp_path / "own", run, "--output", tmp_path / "no", "--strict"),
        "is not the base that the adapter was trained on, tiny",
        "or leave out --strict",
    )
    assert not (tmp_path / "no").exists()

    formats.write(random_adapter(tiny_base, provenance=Provenance()), tmp_path / "unknown", "diffusers")
    result = cli("merge", tiny_base, tmp_path / "unknown", "--output", tmp_path / "guess")
    assert result.status == 0
    assert "cannot be compared with the base of the adapter, unknown" in result.err


def test_strength_outside_0_1_is_allowed_with_a_warning(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    formats.write(random_adapter(tiny_base), tmp_path / "a", "kohya")
    for strength, meaning in (("1.5", "was not trained"), ("-0.5", "strengthens what is to be erased")):
        result = cli("merge", tiny_base, f"{tmp_path / 'a'}:{strength}", "--output", tmp_path / f"out{strength}")
        assert result.status == 0, result.err
        assert f"strength = {strength} of {tmp_path / 'a'} lies outside [0, 1]" in result.err
        assert meaning in result.err


def test_unmerge_reports_how_far_it_is_from_the_base(tiny_base: Path, tmp_path: Path, cli: Cli) -> None:
    base = pack(tiny_base, tmp_path / "base.safetensors", torch.float16)
    formats.write(random_adapter(tiny_base), tmp_path / "a", "kohya")
    merged, back = tmp_path / "merged.safetensors", tmp_path / "back.safetensors"
    assert cli("merge", base, tmp_path / "a", "--output", merged).status == 0
    result = cli("merge", merged, tmp_path / "a", "--output", back, "--unmerge", "--compare", base)
    assert result.status == 0, result.err
    said = float(result.out.split("greatest difference from")[1].split(": ")[1].split(",")[0])
    old, new = load_file(base), load_file(back)
    largest = max(float((old[key].double() - new[key].double()).abs().max()) for key in old)
    assert said == pytest.approx(largest, rel=1e-2)
    assert 0 < largest < 1e-2
    assert "warning" not in result.err
