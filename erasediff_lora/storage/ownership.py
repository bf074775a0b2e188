"""Whose folder it is. What is there is replaced, swept or moved only where a file of ours says that it is ours.

A run that is replaced waits in a sibling until the new one is whole, and comes back if that fails.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from erasediff_lora.errors import Interrupted, Problem, UserError
from erasediff_lora.storage.files import remove, writable, write_text
from erasediff_lora.storage.inside import LARGEST, inside, parse_json, read_plain

Kind = Literal["evaluation", "run"]
LOCK_FILE = ".erasediff.lock"
MARK_FILE = "erasediff-lora.json"
"""In every folder that runs or evaluations were written to; says which of them."""
WHOLE_FILE = "whole"
"""In the place of a replaced run, once all of it is there."""
EVALUATION = ("evaluation.json", "evaluations", "report.html", "before_after.png", "pictures")
RUN = (
    *EVALUATION,
    *("recipe.yaml", "near.json", "data_report.json", "forget_set.png", "retain_set.png", "selection.json"),
    *("training_log.jsonl", "checkpoints", "samples", "hub", "erasediff-lora"),
    *("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json", "erase-*.safetensors"),
    *("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3"),
)
"""What a run may have at its top; with wildcards. 'erasediff-lora' is TensorBoard's."""
PREPARED = ("near.json", "data_report.json", "forget_set.png", "retain_set.png")
"""What there is before the first step: beside a mark it is ours, also where the folder was copied."""
NAMES: dict[Kind, tuple[str, ...]] = {"evaluation": EVALUATION, "run": RUN}
LARGEST_LOG = 2**40
"""Bytes: of a log the first line is read, however many follow."""
MOST_NAMED = 5
"""Files that a message lists."""

log = logging.getLogger(__name__)


def require_ours(folder: Path, kind: Kind, field: str = "output") -> None:
    """See that nothing is in the way in a folder: what is ours may be replaced, and else no name may be taken.

    Args:
        folder: It need not be there.
        kind: What is going to be written there.
        field: What the user calls it, for the message.

    Raises:
        UserError: If something is in the way.
    """
    before = kind_of(folder)
    mine = PREPARED if before is None and (folder / MARK_FILE).is_file() else () if before is None else NAMES[before]
    if taken := [name for name in _entries(folder, NAMES[kind]) if not _matches(name, mine)]:
        what = f"was not made by this program, and holds {_few(taken)}, which would be replaced."
        raise UserError(Problem(field, str(folder), what, "Choose another folder, or move that away."))


def claim(folder: Path, kind: Kind, field: str = "output") -> None:
    """Mark a folder as ours; it is made if it is not there.

    Raises:
        UserError: If something is in the way that is not ours, or the folder cannot be written.
    """
    before = kind_of(folder)
    if before in (kind, "run") and _is_marked(folder):
        return
    require_ours(folder, kind, field)
    with writable(folder, field):
        folder.mkdir(parents=True, exist_ok=True)
    _mark(folder, "run" if before == "run" else kind, field)


def _mark(folder: Path, holds: Kind, field: str = "output") -> None:
    """Say whose the folder is. A mark that is copied into another folder, as whole folders are, says nothing there."""
    write_text(folder / MARK_FILE, json.dumps({"holds": holds, "folder": folder.stat().st_ino}) + "\n", field)


def _is_marked(folder: Path) -> bool:
    try:
        return (file := inside(folder, MARK_FILE)) is not None and _by_mark(file) is not None
    except (UserError, OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


@contextmanager
def claimed(folder: Path, kind: Kind) -> Iterator[None]:
    """As `claim`; where nothing is written in the end, because of bad input say, the mark goes too."""
    require_ours(folder, kind)
    with standing(folder):
        claim(folder, kind)
        try:
            yield
        finally:
            if {path.name for path in folder.iterdir()} <= {MARK_FILE, LOCK_FILE}:
                (folder / MARK_FILE).unlink(missing_ok=True)


@contextmanager
def standing(folder: Path) -> Iterator[None]:
    """Make a folder and those above it, if they are not there; the ones that are still empty in the end go again.

    Raises:
        UserError: If it cannot be made.
    """
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot be made: {error.strerror or error}."
        raise UserError(Problem("output", str(folder), what, "Choose another folder.")) from None
    try:
        yield
    finally:
        with suppress(OSError):
            for path in new:  # up to the first that holds something: `a/../b` needs an empty `a`
                path.rmdir()


def kind_of(folder: Path) -> Kind | None:
    """What of ours a folder holds, also without a mark, of an earlier version; None if it is not ours."""
    for name, told in ((MARK_FILE, _by_mark), ("training_log.jsonl", _by_log), ("evaluation.json", _by_evaluation)):
        try:
            if (file := inside(folder, name, LARGEST_LOG)) is not None and (kind := told(file)) is not None:
                return kind
        except (UserError, OSError, ValueError, TypeError, KeyError, RecursionError):
            continue
    return None


def _by_mark(file: Path) -> Kind | None:
    told = json.loads(read_plain(file))
    return told["holds"] if told["holds"] in NAMES and told["folder"] == file.parent.stat().st_ino else None


def _by_log(file: Path) -> Kind | None:
    with file.open("rb") as lines:
        first = lines.readline(LARGEST)
    is_marked = not first and (file.parent / MARK_FILE).is_file()  # stopped before the first step, and copied
    is_step = is_marked or "step" in dict(json.loads(first or "{}"))
    return "run" if is_step and (file.parent / "recipe.yaml").is_file() else None


def _by_evaluation(file: Path) -> Kind | None:
    found = parse_json(read_plain(file))
    return "evaluation" if {"metrics", "attacks", "verdict", "recipe"} <= set(found) else None


def strangers(folder: Path, kind: Kind, others: Iterable[str] = ()) -> list[str]:
    """What lies in a folder under names that are not of its kind.

    Args:
        folder: It is there.
        kind: What it should hold.
        others: Further names that it may hold.
    """
    known = (*NAMES[kind], *others)
    return sorted(path.name for path in folder.iterdir() if not _matches(path.name, known))


def _entries(folder: Path, names: tuple[str, ...]) -> list[str]:
    """What lies in a folder under these names."""
    if not folder.is_dir():
        return []
    with writable(folder):
        return sorted(path.name for path in folder.iterdir() if _matches(path.name, names))


def _matches(name: str, names: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + ", …" * (len(names) > MOST_NAMED)


@contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Put a run aside while another takes its place, and remove it when that is whole.

    It comes back if the other one fails. If that one was stopped, and can be resumed, it goes on waiting.

    Args:
        folder: Of the run, which nobody else is using.

    Raises:
        UserError: If the folder beside it cannot be written.
    """
    if is_waiting(folder):  # for one that was killed, and is what is given up now
        _clear(folder)
    else:
        bring_back(folder)
        _put_aside(folder)
    try:
        yield
    except Interrupted:
        if is_waiting(folder):
            log.warning("the run that was in %s waits in %s until this one is whole", folder, _aside(folder))
        raise
    except BaseException:
        if is_waiting(folder):
            _keep_unfinished(folder)
            bring_back(folder)
            log.warning("the run that was in %s is there again", folder)
        raise
    _forget_replaced(folder)


@contextmanager
def finishing(folder: Path) -> Iterator[None]:
    """Remove the run that waits for the one in a folder, if one does, once this is whole."""
    yield
    _forget_replaced(folder)


def _forget_replaced(folder: Path) -> None:
    if is_waiting(folder):
        remove(_aside(folder))


def bring_back(folder: Path) -> None:
    """Put the run that waits beside a folder, or was on its way there, back into it."""
    aside = _aside(folder)
    if not aside.is_dir():
        return
    with writable(folder):
        if is_waiting(folder):
            _clear(folder)
            (aside / WHOLE_FILE).unlink()
        for entry in sorted(aside.iterdir()):
            entry.replace(folder / entry.name)
        aside.rmdir()


def is_waiting(folder: Path) -> bool:
    """Whether a run waits beside a folder for one that takes its place."""
    return (_aside(folder) / WHOLE_FILE).exists()


def _aside(folder: Path) -> Path:
    """Where a replaced run waits: beside the folder itself, which a link may lead to; in it if that is another disk."""
    folder = folder.resolve()
    beside, within = folder.with_name(f".{folder.name}.erasediff-replaced"), folder / ".erasediff.replaced"
    if within.is_dir() or (not beside.is_dir() and not _can_move(folder)):
        return within
    return beside


def _can_move(folder: Path) -> bool:
    """Whether files can be moved out of a folder into the one that it is in: not out of the volume of a container."""
    return not os.path.ismount(folder) and os.access(folder.parent, os.W_OK | os.X_OK)


def _put_aside(folder: Path) -> None:
    aside = _aside(folder)
    if names := _entries(folder, RUN):
        with writable(aside):
            aside.mkdir()
            for name in names:
                (folder / name).replace(aside / name)
            (aside / WHOLE_FILE).touch()


def _clear(folder: Path) -> None:
    with writable(folder):
        for name in _entries(folder, RUN):
            remove(folder / name)


def _keep_unfinished(folder: Path) -> None:
    """Put a failed run that could go on from a checkpoint into a folder of its own."""
    if not any((folder / "checkpoints").glob("step-*")):
        return
    whole = folder.resolve()
    number, kept = 1, whole.with_name(f"{whole.name}.unfinished") if _can_move(whole) else whole / "run.unfinished"
    while kept.exists():
        number, kept = number + 1, kept.with_suffix(f".unfinished-{number + 1}")
    with writable(kept):
        kept.mkdir()
        _mark(kept, "run")
        for name in _entries(folder, RUN):
            (folder / name).replace(kept / name)
    log.warning("what the new run had saved is in %s: --resume goes on from there", kept)
