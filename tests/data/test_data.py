"""Forget and retain sets from disk and from the base, through the command line and the cache."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fixtures import Cli, RecipeFile
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_values

from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.data.prompts import balanced, expand, substitute
from erasediff_lora.recipe import Recipe


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def prepared(
    tiny_base: Path, root: Path, kind: Literal["forget", "retain"] = "forget", **sections: Any
) -> sets.EncodedSet:
    recipe = Recipe.parse(tiny_values(tiny_base, root, **sections))
    return sets.prepare(recipe, denoisers.load(recipe.model), kind)


def captions(data: sets.EncodedSet) -> list[str]:
    return [data.prompts[row] for row in data.captions.tolist()]


def test_templates_expand_in_equal_shares() -> None:
    prompts = expand(["a {style} {concept}", "the {concept}"], ["cat", "dog"], {"style": ["red", "blue"]})
    assert [prompt.text for prompt in prompts] == [
        "a red cat", "a red dog", "a blue cat", "a blue dog", "the cat", "the dog",
    ]  # fmt: skip
    assert prompts[0].attributes == {"style": "red"}
    drawn = [prompt.text for prompt in balanced(prompts, 15, seed=1)]
    assert {drawn.count(prompt.text) for prompt in prompts} == {2, 3}


def test_anchors_replace_the_concept_whatever_its_case() -> None:
    assert substitute("A Cat on a CAT tree", "cat", "dog") == "A dog on a dog tree"
    assert substitute("two animals", "cat", "dog") == "dog"


def test_several_concepts_each_with_its_anchor(tiny_base: Path, tmp_path: Path) -> None:
    concepts = [{"name": "cat", "anchor": "dog"}, {"name": "rose", "anchor": "tulip"}]
    data = prepared(tiny_base, tmp_path, forget={"concepts": concepts, "count": 6}, objective={"target": "anchor"})
    pairs = {(c, data.prompts[a[0]]) for c, a in zip(captions(data), data.anchors.tolist(), strict=True)}
    assert pairs == {
        ("a photo of a cat", "a photo of a dog"),
        ("a photo of a rose", "a photo of a tulip"),
    }


def test_drawn_sets_are_reproducible_by_seed(tiny_base: Path, tmp_path: Path) -> None:
    one = prepared(tiny_base, tmp_path / "1")
    two = prepared(tiny_base, tmp_path / "2")
    other = prepared(tiny_base, tmp_path / "3", sampling={"seed": 5})
    assert torch.equal(one.latents[:], two.latents[:])
    assert not torch.equal(one.latents[:], other.latents[:])


def test_image_folder_layouts(tiny_base: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("cat/a.png", "cat/b.jpg", "rose/c.png", "d.png")):
        picture(tmp_path / "images" / name, index)
    listing = [
        {"file_name": "d.png", "text": "my rose, painted", "concept": "rose"},
        {"file_name": "cat/a.png", "text": "a cat asleep"},
    ]
    (tmp_path / "images/metadata.jsonl").write_text("\n".join(json.dumps(row) for row in listing))
    data = prepared(
        tiny_base,
        tmp_path,
        forget={
            "concepts": [{"name": "cat", "anchor": "dog"}, {"name": "rose", "anchor": "tulip"}],
            "images": {"folder": str(tmp_path / "images")},
        },
        objective={"target": "anchor"},
    )
    anchors = [data.prompts[row[0]] for row in data.anchors.tolist()]
    assert list(zip(captions(data), anchors, strict=True)) == [
        ("a cat asleep", "a dog asleep"),
        ("a photo of a cat", "a photo of a dog"),
        ("my rose, painted", "my tulip, painted"),
        ("a photo of a rose", "a photo of a tulip"),
    ]
    assert data.latents[:].shape == (4, 4, 4, 4)


def test_one_caption_for_all(tiny_base: Path, tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png", 0)
    data = prepared(
        tiny_base, tmp_path, "retain", retain={"images": {"folder": str(tmp_path / "images"), "caption": "a thing"}}
    )
    assert captions(data) == ["a thing"]


def test_datasets_folder(tiny_base: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for index in range(3):
        picture(tmp_path / f"images/{index}.png", index)
    rows = {"image": [str(tmp_path / f"images/{i}.png") for i in range(3)], "text": ["one", "two", "three"]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path / "set")
    loaded = prepared(tiny_base, tmp_path, "retain", retain={"images": {"dataset": str(tmp_path / "set")}})
    assert captions(loaded) == ["one", "two", "three"]
    same = prepared(
        tiny_base, tmp_path / "2", "retain",
        retain={"images": {"folder": str(tmp_path / "images"), "caption": "x"}},
    )  # fmt: skip
    assert torch.equal(loaded.latents[:], same.latents[:])


def test_latents_are_those_of_the_vae(tiny_base: Path, tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png", 0)
    data = prepared(tiny_base, tmp_path, forget={"images": {"folder": str(tmp_path / "images")}})
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae")
    image = Image.open(tmp_path / "images/a.png").resize((38, 32), Image.Resampling.LANCZOS).crop((3, 0, 35, 32))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(data.latents[:], expected)


def test_cache_is_used_invalidated_and_repaired(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "images/a.png", 0)
    forget = {"images": {"folder": str(tmp_path / "images")}}
    caplog.set_level(logging.INFO, logger="erasediff_lora")
    first = prepared(tiny_base, tmp_path, forget=forget)
    (entry,) = (tmp_path / "cache").glob("*/latents-*")
    assert entry.stat().st_mode & 0o777 == 0o644
    assert "from the cache" not in caplog.text
    assert torch.equal(prepared(tiny_base, tmp_path, forget=forget).latents[:], first.latents[:])
    assert "1 pictures from the cache" in caplog.text

    content = bytearray(entry.read_bytes())
    content[-3] ^= 0xFF
    entry.write_bytes(content)
    assert torch.equal(prepared(tiny_base, tmp_path, forget=forget).latents[:], first.latents[:])
    assert "is damaged" in caplog.text
    assert torch.equal(load_file(entry)["rows"], first.latents[:])

    picture(tmp_path / "images/a.png", 1)
    assert not torch.equal(prepared(tiny_base, tmp_path, forget=forget).latents[:], first.latents[:])
    prepared(tiny_base, tmp_path, forget=forget, model={"dtype": "bfloat16"})
    assert len(list((tmp_path / "cache").glob("forget-*"))) == 3


def test_broken_pictures_are_named_and_skipped_or_fatal(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png", 0)
    (tmp_path / "images/b.png").write_bytes(b"no picture")
    forget = {"images": {"folder": str(tmp_path / "images")}}
    result = cli("prepare", recipe_file(forget=forget))
    assert result.status == 2
    assert f"forget.images = '{tmp_path}/images/b.png': is not a readable picture" in result.err
    assert "set forget.images.on_error: skip" in result.err
    result = cli("prepare", recipe_file(forget=forget), "--forget.images.on_error", "skip")
    assert result.status == 0
    assert "skipped unreadable picture" in result.err and "b.png" in result.err
    assert "forget set: 1 pictures" in result.out


def test_empty_sets_and_missing_labels_are_errors(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    images = {"images": {"folder": str(tmp_path / "images")}}
    assert "holds no readable picture" in cli("prepare", recipe_file(forget=images)).err
    picture(tmp_path / "images/a.png", 0)
    assert "has no caption" in cli("prepare", recipe_file(retain=images)).err
    result = cli("prepare", recipe_file(forget=images | {"concepts": ["cat", "rose"]}))
    assert "belongs to none of the concepts cat, rose" in result.err
    (tmp_path / "images/metadata.jsonl").write_text('{"file": "a.png"}')
    result = cli("prepare", recipe_file(forget=images))
    assert result.status == 2
    assert "metadata.jsonl:1': is not a JSON object with file_name" in result.err


def test_no_room_for_the_cache(
    recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    result = cli("train", recipe_file())
    assert result.status == 2
    assert "0 MiB free" in result.err and "Free space there, or set cache to another folder." in result.err
    assert not list((tmp_path / "cache").iterdir())


def test_cache_that_is_a_file(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    result = cli("train", recipe_file(cache=str(tmp_path / "blocked/cache")))
    assert result.status == 2
    assert "cache = " in result.err and "cannot be used" in result.err


@pytest.mark.parametrize("changed", ["vae", "tokenizer", "text_encoder", "unet", "resolution", "prompt", "steps"])
def test_whatever_a_set_depends_on_makes_it_anew(
    changed: str, tiny_base: Path, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    file = recipe_file(model={"base": str(base)})
    assert cli("prepare", file).status == 0
    before = {entry.name for entry in (tmp_path / "cache").iterdir()}
    assert cli("prepare", file).status == 0
    assert {entry.name for entry in (tmp_path / "cache").iterdir()} == before
    flags: tuple[object, ...] = ()
    match changed:
        case "resolution":
            flags = ("--sampling.resolution", 48)
        case "prompt":
            flags = ("--forget.templates", "['a drawing of a {concept}']", "--retain.templates", "['{concept}']")
        case "steps":
            flags = ("--sampling.steps", 3)
        case part:
            smallest = min((base / part).iterdir(), key=lambda entry: entry.stat().st_size)
            smallest.write_text(smallest.read_text() + " ")
    assert cli("prepare", file, *flags).status == 0
    assert len({entry.name for entry in (tmp_path / "cache").iterdir()} - before) == 2


def test_of_very_many_retained_concepts_each_prompt_has_some_as_anchors(tiny_base: Path, tmp_path: Path) -> None:
    """A thousand names against a thousand would be a million prompts to encode."""
    forgotten, kept = [f"artist {n}" for n in range(64)], [f"thing {n}" for n in range(100)]
    data = prepared(tiny_base, tmp_path, forget={"concepts": forgotten, "count": 64}, retain={"concepts": kept})
    assert tuple(data.anchors.shape) == (64, 64)
    assert len(data.prompts) <= 1 + 64 + 4096
    texts = {data.prompts[row] for row in data.anchors.flatten().tolist()}
    assert texts == {f"a photo of a {name}" for name in kept}, "each has its turn"
