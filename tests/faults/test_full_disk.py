"""A disk that fills up: a message, what was there stays, no half of a file. On a tmpfs in a namespace of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench_kills import ended, fork
from fixtures import Cli, RecipeFile

from erasediff_lora.cli import main

# The mark says which folder it is of, and so is written anew in the copy.
BEFORE = """
mount -t tmpfs -o size=$2k tmpfs "$1" || exit 90
cp -a "$3/." "$1/" || exit 91
(cd "$1" && find . -type f -not -name erasediff-lora.json -exec sha256sum {} + | sort) > "$4"
"""
AFTER = """
cd "$1" && sha256sum --quiet --check "$2" || exit 93
test -z "$(find . -name '.?*' -not -name .)" || exit 94
find . -type f
"""
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000


def enter_namespace() -> None:
    """Become root of a namespace with mounts of its own; this process must have one thread."""
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_USER | NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def bash(script: str, *words: object) -> None:
    subprocess.run(["bash", "-c", script, "bash", *map(str, words)], check=True)


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
        said, left, sums = (tmp_path / name for name in ("said", "left", "before"))

        def work() -> None:
            for number, file in ((1, left), (2, said)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            enter_namespace()
            bash(BEFORE, tmp_path / "disk", used + room, tmp_path / "seed", sums)
            assert main([str(word) for word in command]) == 2
            os.ftruncate(1, 0)
            os.lseek(1, 0, os.SEEK_SET)
            bash(AFTER, tmp_path / "disk", sums)

        assert ended([fork(work)]) == [0], said.read_text()
        errors = said.read_text()
        assert "Traceback" not in errors
        return sorted(left.read_text().splitlines()), errors

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
