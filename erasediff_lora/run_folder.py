"""The folder of a run: its lock, its log, its checkpoints."""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasediff_lora import sealed
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.files import atomic, atomic_folder, sha256, sweep, writable, write_text
from erasediff_lora.locks import Held, lock
from erasediff_lora.recipe import FREE_FIELDS, RESULT_SECTIONS, Recipe
from erasediff_lora.sealed import Damaged

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
ADAPTER_FILE = "adapter.safetensors"
TRAINER_FILE = "trainer.pt"

log = logging.getLogger(__name__)


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
    file = folder / LOCK_FILE
    try:
        with lock(file):
            _make_place(folder, resume=resume, overwrite=overwrite)
            yield
    except Held as held:
        raise UserError(
            Problem(
                "output",
                str(folder),
                f"is in use by {held.owner}.",
                "Wait for it, or choose another --output.",
            )
        ) from None


def _make_place(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if (folder / RECIPE_FILE).exists() and not (resume or overwrite):
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
    sweep(folder)
    sweep(folder / CHECKPOINTS)


def check_same_run(recipe: Recipe) -> None:
    """A run is resumed with the recipe that it was started with.

    Raises:
        UserError: Naming each field that differs and changes the result.
    """
    file = recipe.output / RECIPE_FILE
    if not file.exists():
        return
    before = Recipe.load(file).model_dump(mode="json")
    problems = []
    for section, now in recipe.model_dump(mode="json", include=RESULT_SECTIONS).items():
        for name, value in now.items():
            is_free = section == "training" and name in FREE_FIELDS
            if value != before[section].get(name) and not is_free:
                problems.append(
                    Problem(
                        f"{section}.{name}",
                        value,
                        f"was {before[section].get(name)!r} when the run was started.",
                        "Put it back, or start a new run in another --output.",
                    )
                )
    if problems:
        raise UserError(*problems)


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
    if not final.exists() or _checkpoint(final) is None:
        with atomic_folder(final) as partial:
            # Through a Python stream: torch's own writer does not say that a disk is full.
            with atomic(partial / TRAINER_FILE) as temporary, temporary.open("wb") as stream:
                torch.save(trainer | {"step": step}, stream)
            mark = {TRAINER_FILE: sha256((partial / TRAINER_FILE).read_bytes())}
            sealed.write(adapter, partial / ADAPTER_FILE, mark, field="output")
    older = sorted(folder for folder in final.parent.glob("step-*") if folder.name < final.name)
    for old in older[: max(0, len(older) - keep + 1)]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The adapter and the trainer's state of the newest whole checkpoint; None if there is none yet.

    Raises:
        UserError: If there are some, and all of them are damaged.
    """
    checkpoints = sorted((folder / CHECKPOINTS).glob("step-*"), reverse=True)
    for path in checkpoints:
        if (found := _checkpoint(path)) is not None:
            return found
    if checkpoints:
        raise UserError(
            Problem("--resume", str(folder), "every checkpoint in it is damaged.", "Start anew with --overwrite.")
        )
    return None


def _checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_checkpoint` wrote, if it is still that."""
    try:
        adapter, mark = sealed.read(path / ADAPTER_FILE)
        content = (path / TRAINER_FILE).read_bytes()
    except (Damaged, OSError) as error:
        log.warning("the checkpoint %s is damaged (%s)", path, error)
        return None
    if mark.get(TRAINER_FILE) != sha256(content):
        log.warning("the checkpoint %s is damaged (%s does not match its hash)", path, TRAINER_FILE)
        return None
    return adapter, torch.load(io.BytesIO(content), weights_only=True)
