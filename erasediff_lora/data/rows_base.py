"""A row of a set of pictures from disk, before the picture is opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasediff_lora.recipe import Images

log = logging.getLogger(__name__)


def file_of_set(path: str, images: Images) -> Path:
    """A picture's file that a row of `datasets` names. Rows of a set on this machine may name others, which is said.

    Args:
        path: As it stands there.
        images: Names the set.

    Raises:
        OSError: If it is no plain file, or the row of a set from the hub names one that was not downloaded with it.
    """
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    config = datasets.config
    caches = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    own = Path(images.dataset or "")
    places = [*map(Path, caches), *([own if own.is_dir() else own.parent] if own.exists() else [])]
    file = Path(os.path.realpath(path))
    if not any(file.is_relative_to(os.path.realpath(place)) for place in places):
        if not own.exists():
            raise OSError(f"it names a file that is not of the set, {path}")
        _say_elsewhere(str(own), path)
    if not file.is_file():
        raise OSError(f"it names {path}, which is no file")
    return file


_SAID: set[str] = set()


def _say_elsewhere(dataset: str, path: str) -> None:
    if dataset not in _SAID:
        log.warning("rows of %s name files elsewhere, which are read, such as %s", dataset, path)
    _SAID.add(dataset)


@dataclass(frozen=True, slots=True)
class Row:
    """A picture before it is read.

    Attributes:
        name: For messages.
        source: Where it comes from: what `pictures.open_picture` takes.
        values: What is written about it.
        folders: That it lies in.
        classes: Names of the classes that its label counts.
        mark: What tells its content from any other without reading it; None: nothing does.
    """

    name: str
    source: Callable[[], Any]
    values: Mapping[str, Any]
    folders: tuple[str, ...] = ()
    classes: Sequence[str] | None = None
    mark: str | None = None
