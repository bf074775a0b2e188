"""Fields under names that they once had: read from files and flags alike, and said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.renames import RENAMED


@pytest.fixture(autouse=True)
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RENAMED, "training.rate", "training.learning_rate")
    monkeypatch.setitem(RENAMED, "training.noise", "retain.high_noise")


def test_an_old_name_is_read_from_a_file_with_a_note(recipe_file: RecipeFile, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        recipe = Recipe.load(recipe_file(training={"rate": 0.5, "noise": 0.25}))
    assert (recipe.training.learning_rate, recipe.retain.high_noise) == (0.5, 0.25)
    assert caplog.messages.count("training.rate is now called training.learning_rate") == 1
    assert "  rate:" not in recipe.to_yaml()


@pytest.mark.parametrize("flags", [("--training.rate", "0.5"), ("--training", "{rate: 0.5, steps: 2}")])
def test_an_old_name_is_read_from_a_flag(flags: Any, recipe_file: RecipeFile, cli: Cli) -> None:
    result = cli("prepare", recipe_file(), *flags)
    assert result.status == 0
    assert "training.rate is now called training.learning_rate" in result.err


@pytest.mark.parametrize("in_file", [{"learning_rate": 0.25}, {"rate": 0.25}])
@pytest.mark.parametrize("flag", ["training.learning_rate", "training.rate"])
def test_a_flag_wins_over_the_file_whichever_name_either_has(in_file: Any, flag: str, recipe_file: RecipeFile) -> None:
    assert Recipe.load(recipe_file(training=in_file), {flag: 0.5}).training.learning_rate == 0.5


def test_both_names_at_once_are_refused(recipe_file: RecipeFile, cli: Cli) -> None:
    complaint = "training.rate = 0.5: is now called training.learning_rate, which is given as well. Keep that one."
    result = cli("train", recipe_file(training={"rate": 0.5, "learning_rate": 0.25, "steps": 0}))
    refused(result, "2 problems", complaint, "training.steps = 0")
    refused(cli("train", recipe_file(), "--training.rate", "0.5", "--training.learning_rate", "1"), complaint)


@pytest.mark.parametrize("table", [7, "fast", ["x"], None])
def test_no_table_where_one_belongs(table: Any, recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("train", recipe_file(), "--training", repr(table), "--retain", "dog"), "retain = 'dog'")
