"""A base that lacks what it needs is refused in one line, before anything is drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

from fixtures import Cli, RecipeFile
from refusals import refused


def test_without_a_text_encoder(tiny_base: Path, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    shutil.rmtree(base / "text_encoder")
    result = cli("prepare", recipe_file(model={"base": str(base)}))
    refused(result, "model.base", "has no text_encoder, which prompts are encoded by.", "Take the whole folder")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.png"))
