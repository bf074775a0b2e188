"""What `play` says before there is a page, with or without Gradio."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.errors import UserError
from erasediff_lora.playground.server import free_port
from erasediff_lora.playground.wish import Wish


def test_what_is_no_run(cli: Cli, tmp_path: Path, recipe_file: RecipeFile) -> None:
    refused(cli("play", tmp_path / "nothing"), "is no folder of a run", "is not there")
    recipe_file().rename(tmp_path / "recipe.yaml")
    refused(cli("play", tmp_path), "holds no adapter", "erasediff-lora train RECIPE")


def test_without_gradio(cli: Cli, tmp_path: Path, recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe_file().rename(tmp_path / "recipe.yaml")
    (tmp_path / "adapter.safetensors").touch()
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else there(name, *more)
    )
    refused(cli("play", tmp_path), "gradio", "is not installed", 'pip install "erasediff-lora[play]"')


def test_a_port_that_cannot_be_used() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"cannot be used: .*in use.*Choose another, or 0"):
            free_port(taken.getsockname()[1])
    with pytest.raises(UserError, match="must be 0 to 65535"):
        free_port(70000)
    assert free_port(0) > 0


@pytest.mark.parametrize(("wish", "says"), [
    (Wish("x" * 10_000, 0, 1, (1.0,)), "prompt = .*has 10,000 characters; 2,000 are the most"),
    (Wish("  ", 0, 1, (1.0,)), "prompt = .*is empty"),
    (Wish("cat", -1, 1, (1.0,)), "seed = -1"),
    (Wish("cat", 0, 1000, (1.0,)), "steps = 1000"),
    (Wish("cat", 0, 1, (1.0, 1000.0)), "strength of adapter 2 = 1000.0: must be 0 to 4"),
    (Wish("cat", 0, 1, (float("nan"),)), "strength of adapter 1 = nan"),
])  # fmt: skip
def test_wishes_that_are_not_sound(wish: Wish, says: str) -> None:
    with pytest.raises(UserError, match=says):
        wish.require_sound()
