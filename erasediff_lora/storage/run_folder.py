"""The folder of a run: its lock, its log, its checkpoints."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import sweep, writable, write_text
from erasediff_lora.storage.inside import inside, parse_json, read_inside
from erasediff_lora.storage.locks import Held, lock
from erasediff_lora.storage.ownership import (
    LOCK_FILE,
    bring_back,
    claimed,
    finishing,
    is_waiting,
    kind_of,
    replacing,
    require_ours,
    standing,
)

RECIPE_FILE = "recipe.yaml"
EVALUATION_FILE = "evaluation.json"
EVALUATIONS = "evaluations"
REPORT_FILE = "report.html"
GRID_FILE = "before_after.png"
PICTURES = "pictures"
NEAR_FILE = "near.json"
DATA_REPORT_FILE = "data_report.json"
SET_SHEETS = {"forget": "forget_set.png", "retain": "retain_set.png"}
LOG_FILE = "training_log.jsonl"
CHECKPOINTS = "checkpoints"
BEST_FILE = "checkpoints/best.safetensors"
SELECTION_FILE = "selection.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
ADAPTER_FILE = "adapter.safetensors"
TRAINER_FILE = "trainer.pt"
PICTURE_TYPES = ("PNG", "JPEG", "WEBP")
LARGEST_PICTURE = 64 * 2**20
"""Bytes."""
MOST_PIXELS = 64 * 2**20

log = logging.getLogger(__name__)


@contextmanager
def lock_run(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the output folder for this process.

    Raises:
        UserError: If another live process holds it, or it holds a run that is neither resumed nor overwritten.
    """
    try:
        with standing(folder), lock(folder / LOCK_FILE), _in_its_place(folder, resume=resume, overwrite=overwrite):
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


@contextmanager
def _in_its_place(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """What is there of the run is left as it is, or put aside until what takes its place is whole."""
    if not is_waiting(folder) or not (resume or overwrite or (folder / RECIPE_FILE).exists()):
        bring_back(folder)
    if (folder / RECIPE_FILE).exists() and kind_of(folder) != "run":
        require_ours(folder, "run")
    if (folder / RECIPE_FILE).exists() and not (resume or overwrite):
        raise UserError(
            Problem(
                "output",
                str(folder),
                "holds a run already.",
                "Continue it with --resume, replace it with --overwrite, or choose another --output.",
            )
        )
    sweep(folder)
    sweep(folder / CHECKPOINTS)
    sweep(folder / "samples")
    with claimed(folder, "run"), replacing(folder) if overwrite and not resume else finishing(folder):
        yield


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The evaluation.json in a folder.

    Raises:
        UserError: If there is none, or it is damaged or of an older version.
    """
    file = folder / EVALUATION_FILE
    if (text := read_inside(folder, EVALUATION_FILE)) is None:
        raise UserError(
            Problem("run", str(folder), f"has no {EVALUATION_FILE}.", "Make it: erasediff-lora evaluate RUN.")
        )
    try:
        result: dict[str, Any] = parse_json(text)
    except ValueError as error:
        raise UserError(
            Problem("run", str(file), f"is damaged: {error}.", "Make it again: erasediff-lora evaluate RUN.")
        ) from None
    if not isinstance(result, dict) or not {"metrics", "attacks", "verdict", "recipe"} <= result.keys():
        raise UserError(
            Problem("run", str(file), "was written by an older version.", "Make it again: erasediff-lora evaluate RUN.")
        )
    return result


def picture_in(folder: Path, name: object, entry: str) -> Path | None:
    """A picture that a file of a run names. The run may be a stranger's: nothing else is ever opened.

    Args:
        folder: The run.
        name: What stands in the file.
        entry: Where it stands there, for the message.

    Returns:
        Its path, or None if it is not there.

    Raises:
        UserError: If the name leads out of the run or through a link, or what lies there is no picture, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    wanted = "PNG, JPEG or WEBP"
    if (file := inside(folder, name, LARGEST_PICTURE, entry, wanted)) is None:
        return None

    def refused(what: str) -> UserError:
        return UserError(Problem(entry, name, what, f"Only a {wanted} inside {folder} is used; correct it."))

    try:
        with Image.open(file, formats=PICTURE_TYPES) as image:
            if image.width * image.height > MOST_PIXELS:
                raise refused(f"has {image.width} × {image.height} pixels, which is too much.")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        raise refused("is no picture.") from None
    return file


class JsonLog:
    """One JSON object a line. Resuming drops the lines from the step on that is done again, and torn ones."""

    def __init__(self, path: Path, start: int) -> None:
        kept = []
        if path.exists() and not path.is_file():
            what = "is no file, and a run keeps its log there."
            raise UserError(Problem("output", str(path), what, "Move it away."))
        if path.exists() and start > 0:
            with writable(path), path.open(encoding="utf-8", errors="replace") as lines:
                kept = [line.rstrip("\n") for line in lines if 0 < _step_of(line) <= start]
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

    def sync(self) -> None:
        """Have what was written on the disk: a checkpoint must not outlive the lines before it."""
        with writable(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _step_of(line: str) -> int:
    """The step that a line of the log is of; 0 of a line that was not written to its end."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return 0
