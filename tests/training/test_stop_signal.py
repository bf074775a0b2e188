"""Where no signal can be caught, training goes on without."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fixtures import RecipeFile

from erasediff_lora.recipe import Recipe
from erasediff_lora.training.loop import train


def test_training_in_a_thread(recipe_file: RecipeFile, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a notebook does."""
    recipe, ended = Recipe.load(recipe_file(training={"steps": 1})), []
    caplog.set_level("INFO")
    thread = threading.Thread(target=lambda: ended.append(train(recipe)))
    thread.start()
    thread.join()
    assert ended == [tmp_path / "run"]
    assert caplog.text.count("training in a thread: SIGINT and SIGTERM save no checkpoint") == 1
