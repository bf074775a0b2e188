"""The folder of a run: its lock, its log, its checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.files import atomic, atomic_folder, save_safetensors, writable, write_text

RECIPE_FILE = "recipe.yaml"
EVALUATION_FILE = "evaluation.json"
REPORT_FILE = "report.html"
GRID_FILE = "before_after.png"
PICTURES = "pictures"
SET_SHEETS = {"forget": "forget_set.png", "retain": "retain_set.png"}
LOG_FILE = "training_log.jsonl"
CHECKPOINTS = "checkpoints"
BEST_FILE = "checkpoints/best.safetensors"
SELECTION_FILE = "selection.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
LOCK_FILE = ".lock"


@contextmanager
def claim(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the output folder for this process.

    Raises:
        UserError: If another live process holds it, or it holds a run that is neither resumed nor overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            Problem("output", str(folder), f"cannot be made: {error.strerror or error}", "Choose another folder.")
        ) from None
    lock = folder / LOCK_FILE
    _take(lock, folder)
    try:
        used = (folder / RECIPE_FILE).exists()
        if used and not (resume or overwrite):
            raise UserError(
                Problem(
                    "output",
                    str(folder),
                    "holds a run already.",
                    "Continue it with --resume, replace it with --overwrite, or choose another --output.",
                )
            )
        if overwrite and not resume:
            for old in folder.iterdir():
                if old.name != LOCK_FILE:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
        yield
    finally:
        lock.unlink(missing_ok=True)


def _take(lock: Path, folder: Path) -> None:
    mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    for _ in range(2):
        try:
            with lock.open("x", encoding="utf-8") as file, writable(lock):
                file.write(mine)
                file.flush()
            return
        except FileExistsError:
            owner = _owner(lock)
            if owner is not None:
                raise UserError(
                    Problem(
                        "output",
                        str(folder),
                        f"is in use by process {owner['pid']} on {owner['host']}.",
                        f"Wait for it, choose another --output, or delete {lock} if that process is gone.",
                    )
                ) from None
            lock.unlink(missing_ok=True)  # left by a process that died


def _owner(lock: Path) -> dict[str, Any] | None:
    """Who holds the lock; None if that process is known to be dead."""
    try:
        owner: dict[str, Any] = json.loads(lock.read_text(encoding="utf-8"))
        if owner["host"] != socket.gethostname():
            return owner
        os.kill(owner["pid"], 0)
    except (ProcessLookupError, FileNotFoundError, json.JSONDecodeError, KeyError):
        return None
    except PermissionError:
        pass
    return owner


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The evaluation.json in a folder.

    Raises:
        UserError: If there is none, or it is damaged or of an older version.
    """
    file = folder / EVALUATION_FILE
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            Problem("run", str(folder), f"has no {EVALUATION_FILE}.", "Make it: erasediff-lora evaluate RUN.")
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            Problem("run", str(file), f"is damaged: {error}.", "Make it again: erasediff-lora evaluate RUN.")
        ) from None
    if not isinstance(result, dict) or not {"metrics", "attacks", "verdict", "recipe"} <= result.keys():
        raise UserError(
            Problem("run", str(file), "was written by an older version.", "Make it again: erasediff-lora evaluate RUN.")
        )
    return result


class JsonLog:
    """One JSON object a line. Resuming drops the lines from the step on that is done again."""

    def __init__(self, path: Path, start: int) -> None:
        kept = []
        if path.exists() and start > 0:
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= start]
        write_text(path, "".join(line + "\n" for line in kept))
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line and hand it to the system at once.

        Raises:
            UserError: If the disk is full.
        """
        with writable(self._path):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def save_checkpoint(folder: Path, step: int, adapter: dict[str, Tensor], trainer: dict[str, Any], keep: int) -> Path:
    """Write checkpoints/step-N whole or not at all, then drop all but the `keep` newest.

    Raises:
        UserError: If the disk is full or forbids it; earlier checkpoints are still there.
    """
    final = folder / CHECKPOINTS / f"step-{step:06d}"
    if not final.exists():
        with atomic_folder(final) as partial:
            save_safetensors(adapter, partial / "adapter.safetensors")
            # Through a Python stream: torch's own writer does not say that a disk is full.
            with atomic(partial / "trainer.pt") as temporary, temporary.open("wb") as stream:
                torch.save(trainer | {"step": step}, stream)
    for old in sorted(final.parent.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapter and the trainer's state of the newest checkpoint.

    Raises:
        UserError: If there is none.
    """
    checkpoints = sorted((folder / CHECKPOINTS).glob("step-*"))
    if not checkpoints:
        raise UserError(Problem("--resume", str(folder), "there is no checkpoint in it.", "Start without --resume."))
    newest = checkpoints[-1]
    return load_file(newest / "adapter.safetensors"), torch.load(newest / "trainer.pt", weights_only=True)
