"""Files of a folder that a stranger may have made: what leads out of it, or is no file, is never opened."""

from __future__ import annotations

import gc
import json
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from erasediff_lora.errors import Problem, UserError

LARGEST = 16 * 2**20
"""Bytes of a file of numbers or text: several times what the largest runs write."""


def inside(
    folder: Path, name: object, largest: int = LARGEST, field: str = "run", wanted: str = "plain file"
) -> Path | None:
    """A plain file in a folder.

    Args:
        folder: The folder; it may be a link itself.
        name: Of the file, relative to the folder, as it stands in another file maybe.
        largest: Bytes that it may have.
        field: Where the name stands, for the message.
        wanted: What may be there, for the message.

    Returns:
        Its path, or None if it is not there.

    Raises:
        UserError: If the name leads out of the folder or through a link, or what lies there is no file, or too large.
    """

    def refused(what: str) -> UserError:
        return UserError(Problem(field, name, what, f"Only a {wanted} inside {folder} is used; correct it."))

    if not isinstance(name, str) or not name or "\0" in name:
        raise refused("names no file.")
    if _leads_out(name):
        raise refused("leads out of the run.")
    root = folder.resolve()
    file = root / name
    try:
        if file.resolve() != file:
            raise refused("is a link, or lies behind one.")
        found = file.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise refused(f"cannot be read: {error.strerror or error}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise refused("is no file.")
    if found.st_size > largest:
        raise refused(f"has {found.st_size} bytes, and {largest} are the most.")
    return file


def _leads_out(name: str) -> bool:
    """Whether a name leads out of its folder, on this system or on another: on Windows a drive or a backslash may."""
    either = (PurePosixPath(name), PureWindowsPath(name))
    return ":" in name or any(path.anchor or ".." in path.parts for path in either)


def read_plain(path: Path, largest: int = LARGEST) -> bytes:
    """The content of a file that a stranger may have made, or a link to one.

    Raises:
        OSError: If it cannot be read. FileNotFoundError: if it is not there.
        ValueError: If it is no plain file, such as a pipe that never ends, or larger than `largest` bytes.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    if found.st_size > largest:
        raise ValueError(f"it has {found.st_size} bytes, and {largest} are plenty")
    return path.read_bytes()


def parse_json(text: str | bytes) -> Any:
    """JSON of up to LARGEST bytes; of millions of values, through which the collector would look again and again.

    Raises:
        ValueError: If it is none, or nested too deep.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    finally:
        if is_on:
            gc.enable()


def read_inside(folder: Path, name: str, field: str = "run") -> str | None:
    """The text of a file in a folder; None if it is not there.

    Raises:
        UserError: As `inside` does, and if it cannot be read or is no UTF-8.
    """
    if (file := inside(folder, name, field=field)) is None:
        return None
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read: {' '.join(str(error).split())}."
        raise UserError(Problem(field, str(file), what, "Correct it, or make it again.")) from None
