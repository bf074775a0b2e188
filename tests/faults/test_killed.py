"""SIGKILL at any moment: nothing but the steps since the last checkpoint is lost, and nothing half-written is found."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
ADAPTER = "pytorch_lora_weights.safetensors"
KILLED_IN = """
import os, signal, sys
from pathlib import Path

name, nth = sys.argv[1], int(sys.argv[2])
replace, calls = Path.replace, 0

def replace_or_die(self, target):
    global calls
    calls += Path(target).name.startswith(name)
    if calls == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace_or_die
from erasediff_lora.cli import main
sys.exit(main(sys.argv[3:]))
"""


def python(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def same(one: Path, two: Path) -> bool:
    a, b = load_file(one / ADAPTER), load_file(two / ADAPTER)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def whole(folder: Path) -> None:
    """Every file under a final name can be read."""
    for file in folder.rglob("*.safetensors"):
        if not file.name.startswith(".") and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            load_file(file)


@pytest.mark.parametrize(("name", "nth"), [("retain-", 1), ("step-000004", 1), ("trainer", 2), (ADAPTER, 1)])
def test_killed_while_it_writes(name, nth, recipe_file, cli, tmp_path) -> None:
    """Just before a file takes its final name, which is the worst moment."""
    file = recipe_file(training={"steps": 6})
    assert cli("train", file, "--output", tmp_path / "whole", "--cache", tmp_path / "other").status == 0
    killed = python("-c", KILLED_IN, name, nth, "train", file)
    _, errors = killed.communicate(timeout=120)
    assert killed.returncode == -9, errors
    whole(tmp_path / "run")
    whole(tmp_path / "cache")
    assert cli("train", file, "--resume").status == 0
    assert same(tmp_path / "run", tmp_path / "whole")
    left = [path for folder in ("run", "cache") for path in (tmp_path / folder).rglob(".*")]
    assert not left, "the next run removes what the killed one left"


def test_killed_at_random_moments(recipe_file, cli, tmp_path) -> None:
    """One run, killed again and again, started again by the same command."""
    file = recipe_file(training={"steps": 40, "checkpoint_every": 1})
    assert cli("train", file, "--output", tmp_path / "whole").status == 0
    moments, kills = random.Random(0), 0
    while kills < 2:
        running = python("-m", "erasediff_lora.cli", "train", file, "--resume")
        began = time.monotonic()
        log = tmp_path / "run/training_log.jsonl"
        before = log.read_text().count("\n") if log.exists() else 0
        while running.poll() is None and time.monotonic() - began < 120:
            if log.exists() and log.read_text().count("\n") > before:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.8))
        running.kill()
        running.communicate()
        kills += 1
        whole(tmp_path / "run")
    assert cli("train", file, "--resume").status == 0
    assert same(tmp_path / "run", tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/training_log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
@pytest.mark.parametrize("part", ["adapter.safetensors", "trainer.pt"])
def test_a_damaged_checkpoint_is_passed_over_and_made_anew(part, damage, recipe_file, cli, tmp_path) -> None:
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
    assert same(tmp_path / "run", tmp_path / "whole")
    assert [folder.name for folder in (tmp_path / "run/checkpoints").iterdir()] == ["step-000008"]


def test_the_only_good_checkpoint_is_kept(recipe_file, cli, tmp_path) -> None:
    """Newer ones that are damaged do not count, though there is room for one only."""
    file = recipe_file(training={"steps": 5, "checkpoint_every": 1, "keep_checkpoints": 4})
    assert cli("train", file).status == 0
    checkpoints = tmp_path / "run/checkpoints"
    for step in ("step-000004", "step-000005"):
        (checkpoints / step / "trainer.pt").write_bytes(b"")
    again = ("train", file, "--resume", "--training.keep_checkpoints", 1)
    killed = python("-c", KILLED_IN, "step-000005", 1, *again)
    _, errors = killed.communicate(timeout=120)
    assert killed.returncode == -9, errors
    kept = [step.name for step in checkpoints.glob("step-*")]
    assert kept == ["step-000004"], "made anew, and the damaged one made way for its successor"
    assert cli(*again).status == 0
    for step in checkpoints.iterdir():
        (step / "trainer.pt").write_bytes(b"")
    refused(cli("train", file, "--resume"), "every checkpoint in it is damaged. Start anew with --overwrite.")


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(recipe_file, cli, tmp_path) -> None:
    """So that a machine that may vanish can be given one command for all its lives."""
    result = cli("train", recipe_file(), "--resume")
    assert result.status == 0 and "no checkpoint in" in result.err and "starting from the beginning" in result.err
    assert cli("train", recipe_file(), "--output", tmp_path / "plain").status == 0
    assert same(tmp_path / "run", tmp_path / "plain")
