"""A disk that fills up: a message, what was there stays, no half of a file. On a tmpfs in a namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli, RecipeFile

ROOT = Path(__file__).parent.parent.parent
# The mark says which folder it is of, and so is written anew in the copy.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$2k tmpfs "$1" || exit 90
cp -a "$3/." "$1/" || exit 91
(cd "$1" && find . -type f -not -name erasediff-lora.json -exec sha256sum {} + | sort) > "$4"
disk=$1; before=$4; shift 4
"$@"
test "$?" = 2 || exit 92
cd "$disk" && sha256sum --quiet --check "$before" || exit 93
test -z "$(find . -name '.?*' -not -name .)" || exit 94
find . -type f
"""


@pytest.fixture
def fill(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> Any:
    """Run a command on a disk that holds a trained run, and has so many KiB left."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    assert cli("train", recipe_file(), "--output", tmp_path / "seed/run").status == 0
    shutil.rmtree(tmp_path / "seed/run/checkpoints")
    assert cli("train", recipe_file(), "--output", tmp_path / "disk/unsaved").status == 0
    shutil.move(tmp_path / "disk/unsaved", tmp_path / "seed")
    for file in (tmp_path / "seed/unsaved").glob("*.safetensors"):
        file.unlink()

    def on_disk(room: int, *command: object) -> tuple[list[str], str]:
        files = [file for file in (tmp_path / "seed").rglob("*") if file.is_file()]
        used = sum(-(-file.stat().st_size // 4096) * 4 for file in files)
        program = ["unshare", "-rm", "bash", "-c", ON_A_SMALL_DISK, "bash", tmp_path / "disk", used + room]
        ours = [tmp_path / "seed", tmp_path / "before", sys.executable, "-m", "erasediff_lora.cli", *command]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(part) for part in [*program, *ours]], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return sorted(done.stdout.splitlines()), done.stderr

    return on_disk


def test_in_every_program_that_writes(fill: Any, recipe_file: RecipeFile, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    full = "cannot be written: No space left on device. Free space there, or choose another place."
    untouched, said = fill(8, "convert", disk / "run", disk / "other.safetensors", "--format", "kohya")
    assert f"output = '{disk}/other.safetensors': {full}" in said
    files, said = fill(8, "evaluate", disk / "run")
    assert full in said and set(files) - set(untouched) <= {"./run/evaluation.json", "./run/before_after.png"}
    files, said = fill(
        60, "train", recipe_file(training={"steps": 400, "checkpoint_every": 400}), "--output", disk / "b"
    )
    assert f"output = '{disk}/b/training_log.jsonl': {full}" in said
    files, said = fill(12, "train", recipe_file(), "--output", disk / "unsaved", "--resume")
    assert f"output = '{disk}/unsaved" in said and full in said and files == untouched
    files, said = fill(8, "prepare", recipe_file(), "--cache", disk / "cache")
    assert f"cache = '{disk}/cache': has 0 MiB free" in said and files == untouched
