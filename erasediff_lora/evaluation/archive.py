"""Evaluations of a run, side by side: each in a folder of its own, the foremost also at the run's top.

The foremost is the newest one that measures no less than the foremost before it: of the same adapter all its metrics
and attacks, of all its concepts, on as many pictures. So a quick look never takes the place of a full report.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import OURS, atomic_folder, replace, writable
from erasediff_lora.storage.run_folder import (
    EVALUATION_FILE,
    EVALUATIONS,
    GRID_FILE,
    PICTURES,
    REPORT_FILE,
    read_evaluation,
)

log = logging.getLogger(__name__)
NAME = re.compile(r"[\w][\w.-]{0,63}")
SHOWN = (PICTURES, GRID_FILE, REPORT_FILE, EVALUATION_FILE)
"""The numbers last: who finds them finds the rest."""


def entry_for(folder: Path, name: str) -> Path:
    """A folder that is not there yet for an evaluation of today.

    Args:
        folder: Of the run.
        name: What the evaluation is called.

    Raises:
        UserError: If the name cannot be one of a folder.
    """
    if not NAME.fullmatch(name):
        raise UserError(Problem("--name", name, "is no name for a folder.", "Use letters, digits, dots and dashes."))
    return _free(folder, datetime.now(UTC), name)


def _free(folder: Path, moment: datetime, name: str) -> Path:
    first = folder / EVALUATIONS / f"{moment:%Y-%m-%d-%H%M%S}-{name}"
    entry, number = first, 1
    while entry.exists():
        number += 1
        entry = first.with_name(f"{first.name}-{number}")
    return entry


def put_foremost(folder: Path, entry: Path) -> bool:
    """Show an evaluation at the run's top, unless the one there measures more.

    Args:
        folder: Of the run.
        entry: Of the evaluation.

    Returns:
        Whether it is shown there now.

    Raises:
        UserError: If the folder cannot be written.
    """
    if (folder / EVALUATION_FILE).is_file():
        there = _readable(folder)
        if there is not None and "name" not in there:
            _keep_earlier(folder)
        if there is not None and not measures_no_less(read_evaluation(entry), there):
            return False
    _copy(entry, folder)
    return True


def measures_no_less(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether an evaluation may take the place of another: it is of another adapter, or leaves nothing out."""
    try:
        if new["adapter"]["sha256"] != old["adapter"]["sha256"]:
            return True
        kinds = ("concepts", "metrics", "attacks", "survival")
        return all({*old.get(kind, [])} <= {*new.get(kind, [])} for kind in kinds) and all(
            new[count] >= old[count] for count in ("forget_samples", "retain_samples")
        )
    except (KeyError, TypeError, AttributeError):  # not ours, or damaged
        return True


def _readable(folder: Path) -> dict[str, Any] | None:
    try:
        return read_evaluation(folder)
    except UserError as error:
        log.warning("%s", error)
        return None


def _keep_earlier(folder: Path) -> None:
    """Put an evaluation that an earlier version left at the top beside the others."""
    written = datetime.fromtimestamp((folder / EVALUATION_FILE).stat().st_mtime, UTC)
    with atomic_folder(_free(folder, written, "earlier")) as kept:
        _copy(folder, kept)


def _copy(source: Path, target: Path) -> None:
    """Put an evaluation's files and pictures in the place of others, all or none: a full disk is noticed before."""
    with writable(target):
        staged = Path(tempfile.mkdtemp(prefix=f"{OURS}foremost.", dir=target))
        try:
            shown = [name for name in SHOWN if (source / name).exists()]
            for name in shown:
                if (source / name).is_dir():
                    shutil.copytree(source / name, staged / name)
                else:
                    shutil.copyfile(source / name, staged / name)
            for name in shown:
                replace(staged / name, target / name)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
