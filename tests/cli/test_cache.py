"""erasediff-lora cache: what it holds, and making room without touching what is not ours or in use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.storage.locks import making

DAY = 24 * 60 * 60


@pytest.fixture
def cache(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> Path:
    """With two sets, one of them last used ten days ago, and files that are nobody's."""
    assert cli("prepare", recipe_file()).status == 0
    folder = tmp_path / "cache"
    (folder / "notes.txt").write_text("mine")
    (folder / "forget-me-not").mkdir()
    (old,) = (path for path in folder.glob("forget-*") if len(path.name) > 20)
    then = time.time() - 10 * DAY
    for file in old.iterdir():
        os.utime(file, (then, then))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in folder.iterdir()} | {
        path.name for path in folder.iterdir() if len(path.name) < 20
    }


def test_it_is_listed(cache: Path, cli: Cli) -> None:
    result = cli("cache", "--folder", cache)
    assert result.status == 0
    assert "encoded sets                     2" in result.out and "used 0 to 10 days ago" in result.out


def test_what_was_not_used_for_longest_goes(cache: Path, cli: Cli) -> None:
    assert "would remove 1 entries" in cli("cache", "--folder", cache, "--older", 5, "--dry-run").out
    assert len(list(cache.glob("forget-*"))) == 2
    assert "removed 0 entries" in cli("cache", "--folder", cache, "--older", 20).out
    assert "removed 1 entries" in cli("cache", "--folder", cache, "--older", 5).out
    assert [path.name for path in cache.glob("forget-*")] == ["forget-me-not"]
    assert (cache / "notes.txt").read_text() == "mine" and list(cache.glob("retain-*"))


def test_down_to_a_size_but_nothing_of_today(cache: Path, cli: Cli) -> None:
    assert "removed 1 entries" in cli("cache", "--folder", cache, "--keep", "1KiB").out
    assert list(cache.glob("retain-*")), "it may be in use"


def test_what_is_being_made_stays(cache: Path, cli: Cli) -> None:
    (old,) = (path for path in cache.glob("forget-*") if len(path.name) > 20)
    with making(old, "a set"):
        assert "removed 0 entries" in cli("cache", "--folder", cache, "--older", 5).out
    assert old.is_dir()


def test_an_entry_that_was_removed_is_made_again(cache: Path, recipe_file: RecipeFile, cli: Cli) -> None:
    assert cli("cache", "--folder", cache, "--older", 5).status == 0
    assert cli("train", recipe_file()).status == 0


@pytest.mark.parametrize(("flag", "value", "said"), [
    ("--keep", "much", "--keep = 'much': is no size."),
    ("--keep", "9" * 400, "is no size."),
    ("--older", 0.5, "--older = 0.5: is less than a day"),
])  # fmt: skip
def test_bad_options(flag: str, value: object, said: str, cache: Path, cli: Cli) -> None:
    refused(cli("cache", "--folder", cache, flag, value), said)


def test_an_empty_place_is_an_empty_cache(cli: Cli, tmp_path: Path) -> None:
    result = cli("cache", "--folder", tmp_path / "nowhere")
    assert result.status == 0 and "all                              0" in result.out
    assert not (tmp_path / "nowhere").exists()


def test_without_a_home_folder_one_is_to_be_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a user of a container whom nothing lists."""
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    refused(cli("cache"), "--folder = '~/.cache/erasediff-lora': is no path: Could not determine home directory.")
