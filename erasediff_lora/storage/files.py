"""Reading files that may be damaged, and writing so that nobody ever reads half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.paths import dangling

if TYPE_CHECKING:
    from torch import Tensor

PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin"}
OURS = ".erasediff."
"""How the names of temporary files and folders begin: those of other programs are never touched."""
LONGEST_NAME = 48
"""Characters of the final name in a temporary one."""
TEMPORARY = re.compile(rf"{re.escape(OURS)}.+\.[a-z0-9_]{{8}}(\.\w+)?")
"""Names of `tempfile`, as they are made here."""
PATIENCE = 2.0
"""Seconds. On Windows a file that another program has open, a virus scanner say, cannot be replaced for a moment."""
LONGEST_HEADER = 16 * 2**20
"""Bytes: a hundred times that of a model's file, and room for the notes that some trainers keep there."""
UMASK = os.umask(0o077)
"""What others may not do with new files; the system tells it only by setting it."""
os.umask(UMASK)
UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Free space there, or choose another place."),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS),
        "See that you may write there and no program has it open, or choose another place.",
    ),
    **dict.fromkeys(
        (
            *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EXDEV),
            *(errno.EBUSY, errno.ELOOP, errno.ENXIO, errno.EILSEQ, errno.EINVAL),
        ),
        "Choose another place.",
    ),
}
"""The system's refusals to write -> what helps."""


@contextmanager
def atomic(path: Path, field: str = "output") -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is synced, made readable and renamed to `path`.

    Args:
        path: The final name.
        field: What the user calls it, for the message.

    Raises:
        UserError: If the disk is full or the folder cannot be written. Nothing is left behind.
    """
    with writable(path, field):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_temporary(path), suffix=path.suffix, dir=path.parent)
        os.close(handle)
        with _removed_on_failure(Path(name), path) as temporary:
            yield temporary


@contextmanager
def atomic_folder(path: Path, field: str = "output") -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on failure it goes.

    Args:
        path: The final folder; what stands there is replaced.
        field: What the user calls it, for the message.

    Raises:
        UserError: If the disk is full or the place cannot be written. Nothing is left behind.
    """
    with writable(path, field):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_temporary(path), dir=path.parent))
        try:
            yield temporary
            open_to_umask(temporary)
            replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def open_to_umask(path: Path) -> None:
    """Let others read a temporary file or folder as far as the user does of other new ones; `tempfile` lets nobody."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~UMASK)


def _temporary(path: Path) -> str:
    """The beginning of a temporary name; a long name, whose letters may take four bytes each, is cut."""
    return f"{OURS}{path.name[:LONGEST_NAME]}."


def replace(new: Path, path: Path) -> None:
    """Give a file or folder its place. What is there goes once the new one stands, and comes back if it cannot."""
    if new.is_dir() and (path.exists() or path.is_symlink()):
        there = Path(tempfile.mkdtemp(prefix=_temporary(path), dir=path.parent))
        _rename(path, there / path.name)
        try:
            _rename(new, path)
        except OSError:
            _rename(there / path.name, path)
            raise
        finally:
            shutil.rmtree(there, ignore_errors=True)
    else:
        _rename(new, path)


def _rename(old: Path, new: Path) -> None:
    until = time.monotonic() + (PATIENCE if sys.platform == "win32" else 0)
    while True:
        try:
            old.replace(new)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.1)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, but not what it leads to."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def _removed_on_failure(temporary: Path, path: Path) -> Iterator[Path]:
    try:
        yield temporary
        with temporary.open("r+b") as stream:  # Windows syncs what may be written only
            os.fsync(stream.fileno())
        open_to_umask(temporary)
        replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """A new name survives a loss of power once its folder is on the disk. Windows opens no folders."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what `atomic` and `atomic_folder` leave of `name` when they are killed. Nobody else may be writing it."""
    for path in folder.glob(f"{OURS}{name[:LONGEST_NAME]}.*"):
        if TEMPORARY.fullmatch(path.name):
            remove(path)


@contextmanager
def writable(path: Path, field: str = "output") -> Iterator[None]:
    """Turn the system's refusal to write into an error that names the path.

    Raises:
        UserError: For a full disk, a quota, a read-only or forbidden place.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter has the system's error in its text only
        named = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
        if number not in UNWRITABLE:
            raise
        raise UserError(
            Problem(
                field,
                str(path),
                f"cannot be written: {os.strerror(number)}.",
                UNWRITABLE[number],
            )
        ) from error


def require_writable(folder: Path, field: str = "output") -> None:
    """See that a folder can be written, or made, and leave nothing there.

    Args:
        folder: Where something is going to be written.
        field: What the user calls it, for the message.

    Raises:
        UserError: If it cannot.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with writable(folder, field), tempfile.TemporaryFile(dir=there):
        pass


def require_free(file: Path, field: str = "output", *, overwrite: bool) -> None:
    """See that a file is not there yet, or may be replaced.

    Raises:
        UserError: If it is there and may not, or it is a folder.
    """
    if file.is_dir():
        raise UserError(Problem(field, str(file), "is a folder.", "Name a file."))
    if (file.exists() or file.is_symlink()) and not overwrite:
        remedy = "Choose another name, or replace it with --overwrite."
        raise UserError(Problem(field, str(file), "exists already.", remedy))


_WEB_PAGE = ("is a web page, such as a hub's about the file.", "Download the file itself, with the hub's program.")
_STAND_INS = {
    b"version https://git-lfs": ("is a pointer of Git LFS, not the file.", "Fetch it with git lfs pull."),
    b"<!doctype": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"gguf": ("is a GGUF file, whose weights are quantised.", "Take the safetensors file that it was made of."),
}
"""What lies where a download did not bring the file, by its first bytes."""


def open_safetensors(path: Path, field: str, framework: Literal["pt", "np"] = "pt") -> Any:
    """A checked `safe_open` handle.

    Args:
        path: The file.
        field: What the user calls it, for the message.
        framework: Whose tensors the handle gives, torch's or numpy's.

    Raises:
        UserError: If there is no such file, or it is a pickle, damaged, or no safetensors file.
    """
    if path.is_symlink() and not path.exists():
        raise dangling(path, field)
    if not path.is_file():
        raise UserError(Problem(field, str(path), "there is no such file.", "Check the path."))
    with path.open("rb") as stream:
        beginning = stream.read(40)
    start = beginning[:8]
    length, size = int.from_bytes(start, "little"), path.stat().st_size
    # A header's length can begin with the same bytes as a pickle, but a pickle never begins with a length that fits.
    looks_pickled = start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if path.suffix in PICKLE_SUFFIXES or (looks_pickled and length > size):
        raise UserError(
            Problem(
                field,
                str(path),
                "is a pickle, which can run code when opened.",
                "Convert it: safetensors.torch.save_file(torch.load(file, weights_only=True), 'new.safetensors').",
            )
        )
    try:
        if LONGEST_HEADER < length < size:
            raise SafetensorError(f"its header has {length} bytes, and {LONGEST_HEADER} are plenty")
        return safe_open(path, framework=framework)
    except (SafetensorError, OSError) as error:
        for mark, (what, remedy) in _STAND_INS.items():
            if beginning.lower().startswith(mark):
                raise UserError(Problem(field, str(path), what, remedy)) from error
        raise UserError(
            Problem(
                field,
                str(path),
                f"is no intact safetensors file: {' '.join(str(error).split())}.",
                "Download or export it again.",
            )
        ) from error


def write_text(path: Path, text: str, field: str = "output") -> None:
    """Write a UTF-8 text file atomically."""
    with atomic(path, field) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def save_safetensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None, field: str = "output"
) -> None:
    """Write a safetensors file atomically."""
    from safetensors.torch import save_file

    with atomic(path, field) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)


def all_in(path: Path) -> list[Path]:
    """The file, or the files in the folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """SHA-256, in hexadecimal, over files and their names under `root`."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()
