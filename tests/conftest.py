"""Fixtures: a tiny base model, a run that was trained on it, and the command line as a user types it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

if not os.environ.get("TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same tests everywhere: `auto` means float32 on the CPU in all of them

import pytest
import torch
import yaml
from fixtures import Cli, RecipeFile, Result
from tiny import tiny_base_recipe, tiny_pipeline, tiny_values

from erasediff_lora.cli import main


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # small models are ten times slower with more


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> Result:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def recipe_file(tiny_base: Path, tmp_path: Path) -> RecipeFile:
    """Write a tiny recipe, sections changed by keyword, and return its path."""

    def write(**sections: Any) -> Path:
        return tiny_base_recipe(tiny_base, tmp_path, **sections)

    return write


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A run of a few steps; each test gets a copy."""
    root = tmp_path_factory.mktemp("trained")
    (root / "recipe.yaml").write_text(yaml.safe_dump(tiny_values(tiny_base, root)))
    assert main(["train", str(root / "recipe.yaml")]) == 0
    return root / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))
