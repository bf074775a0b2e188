"""A row of a set of pictures from disk, before the picture is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
