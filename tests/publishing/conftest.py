"""A trained run to publish."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from tiny import tiny_values

from erasediff_lora.cli import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A run of a few steps; each test gets a copy."""
    root = tmp_path_factory.mktemp("publish")
    (root / "recipe.yaml").write_text(yaml.safe_dump(tiny_values(tiny_base, root)))
    assert main(["train", str(root / "recipe.yaml")]) == 0
    return root / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))
