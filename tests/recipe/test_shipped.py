"""The recipes that come with the package: listed, copied, run by name, and in what is built of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent
FILES = {file.relative_to(ROOT).as_posix() for file in (ROOT / "recipes").rglob("*.yaml")}


def test_they_are_listed_with_a_line_each(cli: Cli) -> None:
    lines = cli("recipes").out.splitlines()
    for file in FILES:
        name = file.removeprefix("recipes/").removesuffix(".yaml")
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert 10 < len(line.removeprefix(f"  {name} ").strip()) < 120


def test_one_is_copied_and_never_over_another_file(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    assert cli("recipes", "copy", "sd15_artist_style", mine).out == f"{mine}\n"
    assert mine.read_bytes() == (ROOT / "recipes/sd15_artist_style.yaml").read_bytes()
    refused(cli("recipes", "copy", "demo_style", mine), f"output = '{mine}': exists already.")
    assert "artist" in mine.read_text()
    assert cli("recipes", "copy", "demo_style", mine, "--overwrite").status == 0
    assert mine.read_bytes() == (ROOT / "recipes/demo_style.yaml").read_bytes()
    assert cli("recipes", "copy", "accelerate/gpus", tmp_path / "gpus.yaml").status == 0


def test_bad_copies(cli: Cli, tmp_path: Path) -> None:
    result = cli("recipes", "copy", "sd15_artist_stile", tmp_path / "new.yaml")
    refused(result, "recipe = 'sd15_artist_stile': does not come with the package. Did you mean 'sd15_artist_style'?")
    refused(cli("recipes", "copy", "demo_style", tmp_path), "is a folder. Name a file.")
    (tmp_path / "file").touch()
    refused(cli("recipes", "copy", "demo_style", tmp_path / "file" / "new.yaml"), "output = ")
    refused(cli("recipes", "--stray"), "argument = '--stray': is not expected here.")


def test_a_name_stands_for_a_shipped_recipe(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = Recipe.load("sd15_artist_style", {"training.steps": 7})
    assert by_name == Recipe.load(ROOT / "recipes/sd15_artist_style.yaml", {"training.steps": 7})
    assert by_name == Recipe.load(str(ROOT / "recipes/sd15_artist_style.yaml"), {"training.steps": 7})
    refused(cli("train", "sd15_artist_style", "--training.steps", "-1"), "training.steps = -1")
    refused(cli("evaluate", "demo_concept"), "holds no adapter. Train first")
    refused(
        cli("plan", "sd15_artist_stile"),
        "recipe = 'sd15_artist_stile': there is no such file, nor does a recipe of that name come with the package."
        " Did you mean 'sd15_artist_style'?",
    )
    refused(cli("train", "accelerate/gpus"), "recipe = 'accelerate/gpus': there is no such file.")


def test_a_file_of_that_name_comes_first(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_file: RecipeFile
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(recipe_file(training={"steps": 9}), tmp_path / "demo_concept")
    assert Recipe.load("demo_concept").training.steps == 9


def test_what_is_built_has_them(tmp_path: Path) -> None:
    """A wheel from the tree, and one from its sdist."""
    pytest.importorskip("setuptools", "77")
    leave = shutil.ignore_patterns("model", "*.pyc")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "erasediff_lora", tree / "erasediff_lora", ignore=leave)
    shutil.copytree(ROOT / "recipes", tree / "recipes")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (source,) = _build(tree, "sdist")
    shutil.unpack_archive(source, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    for place in (tree, unpacked):
        (wheel,) = _build(place, "wheel")
        names = set(zipfile.ZipFile(wheel).namelist())
        assert {f"erasediff_lora/{file}" for file in FILES} <= names
        assert {"erasediff_lora/py.typed", "erasediff_lora/demo/recipe.yaml"} <= names


def _build(tree: Path, kind: str) -> list[Path]:
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list((tree / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz"))
