"""A base that lacks what it needs is refused in one line, before anything is drawn."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import diffusers
import pytest
from fixtures import Cli, RecipeFile
from published_configs import BASES, published
from refusals import refused

from erasediff_lora.registry import FAMILIES

PIPELINES = [name for name in FAMILIES if FAMILIES[name].in_diffusers]


def test_without_a_text_encoder(tiny_base: Path, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    shutil.rmtree(base / "text_encoder")
    result = cli("prepare", recipe_file(model={"base": str(base)}))
    refused(result, "model.base", "has no text_encoder, which prompts are encoded by.", "Take the whole folder")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.png"))


@pytest.mark.parametrize("family", BASES)
def test_without_one_of_a_transformers_encoders(family: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    for name in FAMILIES[family].encoders:
        base = published(family, tmp_path / name)
        shutil.rmtree(base / name)
        result = cli("prepare", recipe_file(model={"base": str(base), "family": family}))
        refused(result, "model.base", f"has no {name}, which prompts are encoded by.", "Take the whole folder")


@pytest.mark.parametrize(("family", "asked"), [(one, two) for one in BASES for two in PIPELINES if one != two])
def test_a_base_of_another_family_is_named(
    family: str, asked: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    base = published(family, tmp_path / "base")
    result = cli("prepare", recipe_file(model={"base": str(base), "family": asked}))
    what = f"model.family = {asked!r}: {base} is a {FAMILIES[family].pipeline}. Set model.family: {family}."
    refused(result, what)


@pytest.mark.parametrize("family", PIPELINES)
def test_a_diffusers_without_the_pipeline(
    family: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version is: it has no such name."""
    pipeline = FAMILIES[family].pipeline
    monkeypatch.delitem(sys.modules, f"erasediff_lora.denoisers.{family}", raising=False)
    monkeypatch.delitem(diffusers._class_to_module, pipeline)
    monkeypatch.delattr(diffusers, pipeline, raising=False)
    result = cli("prepare", recipe_file(model={"base": str(tmp_path), "family": family}))
    refused(result, f"model.family = {family!r}: cannot be loaded: ", pipeline, "Run: pip install -U diffusers.")
