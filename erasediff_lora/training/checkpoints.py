"""Checkpoints of a run: written whole or not at all, and only gone on from by the recipe that began it."""

from __future__ import annotations

import io
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erasediff_lora.errors import Problem, UserError, brief
from erasediff_lora.recipe import FREE_FIELDS, RESULT_SECTIONS, Recipe
from erasediff_lora.storage import checksummed
from erasediff_lora.storage.checksummed import Damaged
from erasediff_lora.storage.files import atomic, atomic_folder, sha256
from erasediff_lora.storage.run_folder import ADAPTER_FILE, CHECKPOINTS, RECIPE_FILE, TRAINER_FILE

log = logging.getLogger(__name__)
NAME = re.compile(r"step-\d{6,}")
CHOOSE = {"seed", "judge", "judge_labels", "retain_floor"}
"""Fields of `evaluation` by which `training.evaluate_every` chooses."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        step: How many were taken.
        adapter: θ by name.
        trainer: The rest of the state.
    """

    step: int
    adapter: dict[str, Tensor]
    trainer: dict[str, Any]


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
    for section, now in _decisive(recipe).items():
        for name, value in now.items():
            if value != before[section].get(name):
                problems.append(
                    Problem(
                        f"{section}.{name}",
                        value,
                        f"was {brief(before[section].get(name))} when the run was started.",
                        "Put it back, or start a new run in another --output.",
                    )
                )
    if problems:
        raise UserError(*problems)


def _decisive(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What must be the same in a run that is resumed: all that changes its adapter, or which one of it is kept."""
    values = recipe.model_dump(mode="json", include=RESULT_SECTIONS)
    values["training"] = {name: value for name, value in values["training"].items() if name not in FREE_FIELDS}
    if recipe.training.evaluate_every:
        values["evaluation"] = recipe.evaluation.model_dump(mode="json", include=CHOOSE)
    return values


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
            checksummed.write(adapter, partial / ADAPTER_FILE, mark, field="output")
    older = [path for taken, path in _saved(folder) if taken < step]
    for old in older[: max(0, len(older) - keep + 1)]:
        shutil.rmtree(old)
    return final


def _saved(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run by their steps; what else lies beside them, such as a copy of one, is the user's."""
    found = (path for path in (folder / CHECKPOINTS).glob("step-*") if NAME.fullmatch(path.name))
    return sorted((int(path.name.removeprefix("step-")), path) for path in found if path.is_dir())


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; None if there is none yet.

    Raises:
        UserError: If there are some, and all of them are damaged, or the newest is of an earlier version.
    """
    checkpoints = _saved(folder)
    for _, path in reversed(checkpoints):
        if (found := _checkpoint(path)) is not None:
            if "hooks" not in found.trainer:
                what = f"its checkpoint {path.name} is of an earlier version."
                raise UserError(Problem("--resume", str(folder), what, "Start anew with --overwrite."))
            return found
    if checkpoints:
        raise UserError(
            Problem("--resume", str(folder), "every checkpoint in it is damaged.", "Start anew with --overwrite.")
        )
    return None


def _checkpoint(path: Path) -> Checkpoint | None:
    """What `save_checkpoint` wrote, if it is still that."""
    try:
        adapter, mark = checksummed.read(path / ADAPTER_FILE)
        content = (path / TRAINER_FILE).read_bytes()
    except (Damaged, OSError) as error:
        log.warning("the checkpoint %s is damaged (%s)", path, error)
        return None
    if mark.get(TRAINER_FILE) != sha256(content):
        log.warning("the checkpoint %s is damaged (%s does not match its hash)", path, TRAINER_FILE)
        return None
    try:
        trainer = torch.load(io.BytesIO(content), weights_only=True)
        if trainer["step"] != int(path.name.removeprefix("step-")):
            raise ValueError(f"it says that it is of step {brief(trainer['step'])}")
    except Exception as error:  # a stranger's pickle is not run, and raises whatever it does
        log.warning("the checkpoint %s is damaged (%s: %s)", path, type(error).__name__, brief(str(error)))
        return None
    return Checkpoint(trainer["step"], adapter, trainer)
