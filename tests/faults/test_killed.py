"""SIGKILL at any moment: nothing but the steps since the last checkpoint is lost, and nothing half-written is found."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from bench_faults import ADAPTER, half_written, kill_after_a_step, kill_while, same_adapter
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.training.checkpoints import newest_checkpoint, save_checkpoint


@pytest.mark.parametrize("name", ["latents-", "set.json", "step-000004", "trainer", ADAPTER])
def test_killed_while_it_writes(name: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Just before a file takes its final name, which is the worst moment."""
    file = recipe_file(training={"steps": 6})
    assert cli("train", file, "--output", tmp_path / "whole", "--cache", tmp_path / "other").status == 0
    assert kill_while(name, 1, "train", file) == -9
    assert not half_written(tmp_path)
    assert cli("train", file, "--resume").status == 0
    assert same_adapter(tmp_path / "run", tmp_path / "whole")
    left = [path for folder in ("run", "cache") for path in (tmp_path / folder).rglob(".*")]
    assert not left, "the next run removes what the killed one left"


def test_killed_at_random_moments(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """One run, killed again and again, started again by the same command; bench_faults.py does it twenty times."""
    file = recipe_file(training={"steps": 150, "checkpoint_every": 1})
    assert cli("train", file, "--output", tmp_path / "whole").status == 0
    log, moments = tmp_path / "run/training_log.jsonl", random.Random(0)
    for _ in range(2):
        assert kill_after_a_step(moments, log, 0.5, "train", file, "--resume") == -9
        assert not half_written(tmp_path)
    assert cli("train", file, "--resume").status == 0
    assert same_adapter(tmp_path / "run", tmp_path / "whole")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 151))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
@pytest.mark.parametrize("part", ["adapter.safetensors", "trainer.pt"])
def test_a_damaged_checkpoint_is_passed_over_and_made_anew(
    part: str, damage: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file(training={"steps": 6, "keep_checkpoints": 2})
    assert cli("train", file, "--output", tmp_path / "whole", "--training.steps", 8).status == 0
    assert cli("train", file).status == 0
    broken = tmp_path / "run/checkpoints/step-000006" / part
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 0x10
    match damage:
        case "flipped":
            broken.write_bytes(content)
        case "truncated":
            broken.write_bytes(content[: len(content) // 2])
        case "gone":
            broken.unlink()
    result = cli("train", file, "--resume", "--training.steps", 8, "--training.keep_checkpoints", 1)
    assert result.status == 0
    assert "step-000006 is damaged" in result.err
    assert same_adapter(tmp_path / "run", tmp_path / "whole")
    assert [folder.name for folder in (tmp_path / "run/checkpoints").iterdir()] == ["step-000008"]


def test_the_only_good_checkpoint_is_kept(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Newer ones that are damaged do not count, though there is room for one only."""
    file = recipe_file(training={"steps": 5, "checkpoint_every": 1, "keep_checkpoints": 4})
    assert cli("train", file).status == 0
    checkpoints = tmp_path / "run/checkpoints"
    for step in ("step-000004", "step-000005"):
        (checkpoints / step / "trainer.pt").write_bytes(b"")
    again = ("train", file, "--resume", "--training.keep_checkpoints", 1)
    assert kill_while("step-000005", 1, *again) == -9
    found = newest_checkpoint(tmp_path / "run")
    assert found is not None and found.step == 4, "made anew, and kept until its successor is in place"
    assert cli(*again).status == 0
    for folder in checkpoints.iterdir():
        (folder / "trainer.pt").write_bytes(b"")
    refused(cli("train", file, "--resume"), "every checkpoint in it is damaged. Start anew with --overwrite.")


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """So that a machine that may vanish can be given one command for all its lives."""
    result = cli("train", recipe_file(), "--resume")
    assert result.status == 0 and "no checkpoint in" in result.err and "starting from the beginning" in result.err
    assert cli("train", recipe_file(), "--output", tmp_path / "plain").status == 0
    assert same_adapter(tmp_path / "run", tmp_path / "plain")


def test_a_checkpoint_of_an_earlier_version_is_named(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file, run = recipe_file(training={"steps": 2}), tmp_path / "run"
    assert cli("train", file).status == 0
    found = newest_checkpoint(run)
    assert found is not None
    before_hooks = {name: value for name, value in found.trainer.items() if name != "hooks"}
    save_checkpoint(run, 3, found.adapter, before_hooks | {"adversary": None}, keep=2)
    result = cli("train", file, "--resume", "--training.steps", 4)
    refused(result, "its checkpoint step-000003 is of an earlier version. Start anew with --overwrite.")
