"""Evaluating again, and after a stop, reuses what was drawn, to the pixel."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli, RecipeFile

from erasediff_lora.data.prompts import Prompt
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation import picture_store, pictures


def numbers(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "name")}


def reused(said: str) -> dict[str, tuple[int, int]]:
    """Label -> pictures from the cache, of all."""
    found = re.findall(r"(\w+, \w+): (\d+) of (\d+) pictures from the cache", said)
    return {label: (int(some), int(count)) for label, some, count in found}


def test_second_evaluation_draws_nothing_and_says_the_same(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    first = cli("train", recipe_file(sampling={"batch_size": 1}))
    assert first.status == 0, first.err
    assert not reused(first.err)
    run = tmp_path / "run"
    before, grid = numbers(run), (run / "before_after.png").read_bytes()
    again = cli("evaluate", run)
    assert again.status == 0, again.err
    assert reused(again.err) == {
        f"{kind}, {state}": (2, 2) for kind in ("forget", "retain") for state in ("base", "erased")
    }
    assert numbers(run) == before
    assert (run / "before_after.png").read_bytes() == grid


def test_pictures_that_stay_on_the_disk(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of thousands of prompts: all metrics say the same, and what is removed meanwhile is named."""
    file = recipe_file(evaluation={"retain_samples": 6})
    assert cli("train", file).status == 0
    run = tmp_path / "run"
    before, grid = numbers(run), (run / "before_after.png").read_bytes()
    monkeypatch.setattr(picture_store, "MOST_HELD", 0)
    again = cli("evaluate", run)
    assert again.status == 0, again.err
    assert numbers(run) == before and (run / "before_after.png").read_bytes() == grid
    taken = pictures.images_of([pictures.Drawn(Prompt("a"), 0, tmp_path / "gone.png")])
    with pytest.raises(UserError, match="has lost a picture that is in use"):
        taken[0:1]


def test_missing_and_damaged_pictures_are_drawn_anew(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file(sampling={"batch_size": 1})).status == 0
    run = tmp_path / "run"
    grid = (run / "before_after.png").read_bytes()
    entries = sorted((tmp_path / "cache/pictures").iterdir())
    assert len(entries) == 8 and not [entry for entry in entries if entry.name.startswith(".")]
    shutil.rmtree(entries[0])
    damaged = entries[1] / "000.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    result = cli("evaluate", run)
    assert result.status == 0, result.err
    assert f"the pictures in {entries[1]} are damaged" in result.err
    assert sum(some for some, _ in reused(result.err).values()) == 6
    assert (run / "before_after.png").read_bytes() == grid
    assert sum(some for some, _ in reused(cli("evaluate", run).err).values()) == 8


def test_the_base_is_drawn_once_for_all_adapters(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file()).status == 0
    result = cli("train", recipe_file(), "--training.learning_rate", "0.05", "--output", tmp_path / "other")
    assert result.status == 0, result.err
    assert reused(result.err) == {"forget, base": (2, 2), "retain, base": (2, 2)}
    result = cli("evaluate", tmp_path / "other", "--sampling.guidance", "3")
    assert result.status == 0 and not reused(result.err)
