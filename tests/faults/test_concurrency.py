"""Several programs on one folder or one cache: no corruption, no work done twice, no stale lock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file

from erasediff_lora.storage import checksummed
from erasediff_lora.storage.locks import lock

ROOT = Path(__file__).parent.parent.parent
HOLD = """
import sys
from pathlib import Path
from erasediff_lora.storage.locks import lock

with lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock, until it is told to let go or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_folder_in_use_is_refused_and_a_dead_owner_is_no_owner(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with holder(run / ".erasediff.lock") as owner:
        refused(
            cli("train", recipe_file()),
            f"output = '{run}': is in use by process {owner.pid} on {socket.gethostname()}.",
            "Wait for it, or choose another --output.",
        )
        owner.kill()
        owner.wait()
        assert (run / ".erasediff.lock").exists(), "nobody cleaned up"
        assert cli("train", recipe_file()).status == 0
    assert not (run / ".erasediff.lock").exists()


def test_a_lock_that_was_let_go_meanwhile_is_taken_again(tmp_path: Path) -> None:
    """Its file is removed by the last holder: who opened the old file must not believe to hold the new one."""
    path = tmp_path / "lock"
    for _ in range(3):
        with lock(path):
            assert path.exists()
        assert not path.exists()


def test_a_waiting_process_takes_what_the_other_made(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Three at once on an empty cache: one draws, the others wait; all sets are whole."""
    command = [sys.executable, "-m", "erasediff_lora.cli", "prepare", str(recipe_file())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=180)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 3, errors
    for kind in ("forget", "retain"):
        assert sum(f"{kind} set: 4 pictures from the cache" in text for text in errors) == 2
    entries = sorted((tmp_path / "cache").iterdir())
    assert [entry.name.split("-")[0] for entry in entries] == ["forget", "retain"]
    for shard in (tmp_path / "cache").rglob("*.safetensors"):
        checksummed.read(shard)


def test_evaluations_that_meet_draw_the_base_once(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file(training={"steps": 1})
    for name in ("one", "two"):
        assert cli("train", file, "--output", tmp_path / name).status == 0
    commands = [
        [sys.executable, "-m", "erasediff_lora.cli", "evaluate", str(tmp_path / name)] for name in ("one", "two")
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [process.communicate(timeout=180)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    before = {entry.name: entry.stat().st_mtime_ns for entry in (tmp_path / "cache/pictures").iterdir()}
    assert not [name for name in before if name.endswith(".lock")]
    assert cli("evaluate", tmp_path / "one").status == 0
    assert before == {entry.name: entry.stat().st_mtime_ns for entry in (tmp_path / "cache/pictures").iterdir()}
    one, two = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_runs_that_meet_prepare_their_objective_once(recipe_file: RecipeFile, tmp_path: Path) -> None:
    """The mask of saliency: one run makes it, the other waits and takes it, and both end alike."""
    objective = {"name": "saliency", "mask_batches": 2}
    file = recipe_file(forget={"concepts": [{"name": "cat", "anchor": "dog"}]}, objective=objective)
    commands = [
        [sys.executable, "-m", "erasediff_lora.cli", "train", str(file), "--output", str(tmp_path / name)]
        for name in ("one", "two")
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    errors = [process.communicate(timeout=180)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert sum("preparation is from the cache" in text for text in errors) == 1
    one, two = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
