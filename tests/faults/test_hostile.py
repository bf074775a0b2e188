"""Files made to harm: refused in a line, nothing run, nothing left behind. Time and memory: bench_hostile.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import Cli, RecipeFile
from hostile_files import ADAPTERS, PICTURES, RECIPES
from refusals import refused

MEANT_FOR_READERS = {"a name of a million letters", "a number that is not one", "a pattern that never ends"}
"""Recipes that are readable, and refused for what they lack."""


@pytest.fixture(autouse=True)
def no_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("pwned").exists()


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(ADAPTERS[name]())
    for command in (("inspect", file), ("merge", tiny_base, file, "--output", tmp_path / "out/merged")):
        result = cli(*command)
        refused(result, f"adapter = '{file}': ")
        assert result.err.isprintable() or result.err.replace("\n", "").isprintable()
        assert len(result.err) < 2000
    assert {path.name for path in tmp_path.iterdir()} <= {"adapter.safetensors", "out"}
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(RECIPES[name]())
    result = cli("train", file)
    refused(result, "recipe = " if name not in MEANT_FOR_READERS else "is required. Add it to the recipe.")
    assert len(result.err) < 3000
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "picture.png").write_bytes(PICTURES[name]())
    file = recipe_file(forget={"images": {"folder": str(folder)}})
    refused(cli("prepare", file), "is not a readable picture: ", "set forget.images.on_error: skip.")
    left = [path.name for path in (tmp_path / "cache").glob("*")]
    assert left in ([], ["pictures.sqlite"]), "no set; at most the index of pictures that were looked at"
    refused(cli("prepare", file, "--forget.images.on_error", "skip"), "holds no readable picture.")


def test_a_long_strip_is_cut_before_it_is_scaled(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Scaled first, one pixel by two million would become 32 by 64 million."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (2_000_000, 1), "red").save(folder / "strip.png")
    assert cli("prepare", recipe_file(forget={"images": {"folder": str(folder)}})).status == 0


def test_flags_are_read_as_carefully(recipe_file: RecipeFile, cli: Cli) -> None:
    for value in ("!!python/name:os.system", "[" * 1000, "9" * 5000):
        refused(cli("train", recipe_file(), "--training.steps", value), "argument = '--training.steps': has an unread")


def test_aliases_that_unfold_to_little_are_fine(recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(training={"steps": 1})
    values = yaml.safe_load(file.read_text())
    shared = values["forget"].pop("templates")
    text = f"templates: &t {shared}\n"
    retain = yaml.safe_dump({k: v for k, v in values.items() if k not in ("forget", "retain")})
    forget = f"forget: {{concepts: [cat], count: 4, {text.strip()}}}\n"
    file.write_text(forget + "retain: {concepts: [dog, car], count: 4, templates: *t}\n" + retain)
    assert cli("prepare", file).status == 0
