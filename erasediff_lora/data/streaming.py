"""Streamed data sets: read once as they come, and kept in the cache as tar files, from which training goes on.

A stream cannot be asked for its thousandth picture, and may not come in the same order again.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from erasediff_lora.data import tars
from erasediff_lora.data.rows_base import Row, file_of_set
from erasediff_lora.data.set_report import SetReport
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.machine.progress import tqdm
from erasediff_lora.recipe import Images
from erasediff_lora.storage.files import atomic, sha256, sweep, write_text
from erasediff_lora.storage.locks import making

log = logging.getLogger(__name__)
A_PART = 1000
"""Pictures of a tar file: what is lost when the program is stopped."""
WHOLE = "whole"
"""A file that says that the stream has been read to its end."""


def rows(field: str, images: Images, cache: Path | None, load: Callable[[], Any], report: SetReport) -> Iterator[Row]:
    """The pictures of a streamed set, read into the cache if they are not there.

    Args:
        field: What the user calls the set.
        images: Names it, its split and columns, and how many pictures are taken.
        cache: The cache folder.
        load: Opens the stream.
        report: Counts what is not used.

    Raises:
        UserError: Without a cache, for a stream that breaks off, or when the cache cannot be written.
    """
    if cache is None:
        raise UserError(Problem(f"{field}.images.streaming", True, "needs a cache.", "Set cache to a folder."))
    wanted = images.model_dump(mode="json", include={"dataset", "split", "image_column", "limit"})
    folder = cache / f"streamed-{sha256(json.dumps(wanted, sort_keys=True).encode())[:32]}"
    if not (folder / WHOLE).is_file():
        with making(folder, f"the streamed {field} set"):
            if not (folder / WHOLE).is_file():
                _read(field, images, folder, load)
    yield from tars.rows(field, images.model_copy(update={"folder": folder}), report)


def _read(field: str, images: Images, folder: Path, load: Callable[[], Any]) -> None:
    """Write the stream as tar files, behind those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    number = len(tars.find(folder))
    try:
        stream = load()
        classes = {name: kind.names for name, kind in (stream.features or {}).items() if hasattr(kind, "names")}
        rest = iter(stream.skip(number * A_PART) if number else stream)
        left = None if images.limit is None else images.limit - number * A_PART
        progress = tqdm(itertools.islice(rest, left), desc=f"{field} set", unit="picture", leave=False)
        for part in _parts(iter(progress)):
            with atomic(folder / f"{number:05}{tars.SUFFIX}", "cache") as temporary:
                _write(temporary, number * A_PART, part, images, classes)
            number += 1
    except UserError:
        raise
    except Exception as error:  # whatever stands between here and a server
        reason = " ".join(str(error).split())[:300]
        what = f"breaks off after {number * A_PART} pictures, which are kept: {type(error).__name__}: {reason}"
        raise UserError(Problem(f"{field}.images.dataset", images.dataset, what, "Run it again to go on.")) from error
    write_text(folder / WHOLE, "", field="cache")


def _parts(stream: Iterator[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    while part := list(itertools.islice(stream, A_PART)):
        yield part


def _write(
    file: Path, first: int, part: Sequence[Mapping[str, Any]], images: Images, classes: Mapping[str, Sequence[str]]
) -> None:
    with tarfile.open(file, "w") as tar:
        for number, example in enumerate(part, start=first):
            values = {name: value for name, value in example.items() if isinstance(value, str | int)}
            for name, names in classes.items():  # `datasets` writes -1 where there is none
                label = values.pop(name, -1)
                values |= {name: names[label]} if isinstance(label, int) and 0 <= label < len(names) else {}
            _add(tar, f"{number:09}.png", _encoded(example.get(images.image_column), images))
            _add(tar, f"{number:09}.json", json.dumps(values).encode())


def _encoded(picture: Any, images: Images) -> bytes:
    """The file that a picture is; its name says nothing of its format. What is none is found out when it is opened."""
    if isinstance(picture, Mapping):
        content, path = picture.get("bytes"), picture.get("path")
        return content if content is not None else _content(path, images) if path else b""
    if isinstance(picture, Image.Image):
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
        return stream.getvalue()
    return picture if isinstance(picture, bytes) else b""


def _content(path: str, images: Images) -> bytes:
    """Of a file of the set; of any other nothing, which is said when it is opened."""
    try:
        return file_of_set(path, images).read_bytes()
    except OSError as error:
        log.warning("%s: %s", images.dataset, error)
        return b""


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
