"""Pictures in tar files, as the WebDataset format has them: files that share a name but for the suffix are one sample.

`0001.jpg` is a picture, `0001.txt` its caption, `0001.json` what else is known of it, `0001.cls` its label. Nothing is
unpacked: a picture is read from its place in the file when it is asked for.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from erasediff_lora.data.labels import LABEL_COLUMNS
from erasediff_lora.data.pictures import SUFFIXES
from erasediff_lora.data.rows_base import Row
from erasediff_lora.data.set_report import LeftOut, Noted, SetReport
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Images

SUFFIX = ".tar"
CAPTIONS = (".txt", ".caption")
LONGEST_TEXT = 2**20
"""Bytes of a caption or of metadata."""
NOTES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
"""Members that hold the name of the next one, or what else is known of it."""


def find(folder: Path) -> list[Path]:
    """The tar files of a set, in order: the path itself, or those in the folder; none: it is no such set."""
    if folder.is_file():
        return [folder] if folder.suffix.lower() == SUFFIX else []
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in inside if file.suffix.lower() == SUFFIX and file.is_file())


class _Member(tarfile.TarInfo):
    """A member, whose name and notes are not as long as the file: tarfile reads these whole, and looks through them."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in NOTES and self.size > LONGEST_TEXT:
            raise tarfile.ReadError(f"a name in it has {self.size} bytes, and {LONGEST_TEXT} are plenty")
        return super()._proc_member(tar)  # type: ignore[misc]


def rows(field: str, images: Images, report: SetReport) -> Iterator[Row]:
    """The pictures of the files in their order.

    Args:
        field: What the user calls the set.
        images: Names the folder, and the columns.
        report: Counts what is not used.

    Raises:
        UserError: For a file that is no tar, or is damaged.
    """
    assert images.folder is not None
    for file in find(images.folder):
        try:
            yield from _samples(file, images, report)
        except (tarfile.TarError, OSError, EOFError) as error:
            what = f"is not readable as a plain tar file: {error}."
            remedy = "Make it again without compression, which would have to be undone for every picture."
            raise UserError(Problem(f"{field}.images.folder", str(file), what, remedy)) from None


def _samples(file: Path, images: Images, report: SetReport) -> Iterator[Row]:
    name, parts = "", dict[str, tarfile.TarInfo]()
    found = file.stat()
    stamp = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    with tarfile.open(file, "r:", tarinfo=_Member) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            if not member.isreg():
                continue
            path = PurePosixPath(member.name)
            if any(part.startswith(".") for part in path.parts if part != "."):
                report.leave_out(LeftOut.HIDDEN, member.name)
                continue
            stem, _, suffix = path.name.partition(".")
            key = str(path.with_name(stem)) if stem else str(path)
            if key != name:
                yield from _sample(file, stamp, name, parts, images, report)
                name, parts = key, {}
            parts[f".{suffix.lower()}"] = member
        yield from _sample(file, stamp, name, parts, images, report)


def _sample(
    file: Path, stamp: str, name: str, parts: dict[str, tarfile.TarInfo], images: Images, report: SetReport
) -> Iterator[Row]:
    pictures = [suffix for suffix in parts if f".{suffix.rpartition('.')[2]}" in SUFFIXES]
    used = {*pictures[:1], ".json", ".cls", *CAPTIONS}
    for suffix in parts.keys() - used:
        report.leave_out(LeftOut.NO_PICTURE, suffix)
    if not pictures:
        for suffix in CAPTIONS:
            if suffix in parts:
                report.note(Noted.UNUSED_CAPTIONS, f"{name}{suffix}")
        return
    picture = parts[pictures[0]]
    values = _values(file, parts, images)
    source: Callable[[], Any] = partial(_read, file, picture.offset_data, picture.size)
    mark = f"{file.absolute()} {picture.offset_data} {picture.size} {stamp}"
    yield Row(f"{file}:{picture.name}", source, values, PurePosixPath(name).parts[:-1], mark=mark)


def _values(file: Path, parts: dict[str, tarfile.TarInfo], images: Images) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if (text := _text(file, parts.get(".json"))) is not None:
        try:
            known = json.loads(text)
        except (ValueError, RecursionError):
            known = None
        values |= known if isinstance(known, dict) else {}
    for suffix in CAPTIONS:
        if (text := _text(file, parts.get(suffix))) is not None:
            values.setdefault(images.caption_column, text.strip())
    if (text := _text(file, parts.get(".cls"))) is not None:
        values.setdefault(LABEL_COLUMNS[0], text.strip())
    return values


def _text(file: Path, member: tarfile.TarInfo | None) -> str | None:
    if member is None:
        return None
    content: bytes = _read(file, member.offset_data, min(member.size, LONGEST_TEXT)).getvalue()
    return content.decode("utf-8-sig", errors="replace")


def _read(file: Path, offset: int, size: int) -> io.BytesIO:
    """So many bytes of a file.

    Raises:
        OSError: If it has not so many.
    """
    with file.open("rb") as stream:
        if offset + size > stream.seek(0, io.SEEK_END):
            raise OSError("the tar file ends before it")
        stream.seek(offset)
        return io.BytesIO(stream.read(size))
