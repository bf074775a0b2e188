"""What is known of pictures that were looked at before: a set of many files is not decoded anew whenever it is used.

A file counts as the one that was looked at as long as its path, size and times are the same: that of writing, which
programs set, and that of the last change of any kind, which they cannot.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import PIL

from erasediff_lora.data.set_report import Noted

log = logging.getLogger(__name__)
NAME = "pictures.sqlite"
KEPT_TOGETHER = 500
"""Pictures after which what was seen is written."""


@dataclass(frozen=True, slots=True)
class Look:
    """What looking at a picture showed.

    Attributes:
        size: Width and height.
        pixels: SHA-256 of size and pixels.
        noted: What had to be done to it.
    """

    size: tuple[int, int]
    pixels: str
    noted: tuple[Noted, ...]


class PictureIndex:
    """Looks by picture. It only saves time: where it cannot be read or written, pictures are looked at again.

    Args:
        connection: To the index; None: there is none.
        background: Colour behind transparent pictures.
    """

    def __init__(self, connection: sqlite3.Connection | None, background: str) -> None:
        self.connection = connection
        self.how = f"{background}, pillow {PIL.__version__}"
        self.new = 0

    def look(self, mark: str | None, take: Callable[[], Look]) -> Look:
        """What is known of a picture, or what a look shows.

        Args:
            mark: What identifies its content; None: nothing does.
            take: Looks.
        """
        if mark is None or self.connection is None:
            return take()
        try:
            query = "select width, height, pixels, noted from pictures where mark = ? and how = ?"
            found = self.connection.execute(query, (mark, self.how)).fetchone()
            if found is not None:
                return Look((found[0], found[1]), found[2], tuple(Noted[name] for name in json.loads(found[3])))
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            self._give_up(error)
        look = take()
        self._keep(mark, look)
        return look

    def _keep(self, mark: str, look: Look) -> None:
        if self.connection is None:
            return
        try:
            noted = json.dumps([what.name for what in look.noted])
            row = (mark, self.how, *look.size, look.pixels, noted)
            self.connection.execute("insert or replace into pictures values (?, ?, ?, ?, ?, ?)", row)
            self.new += 1
            if self.new % KEPT_TOGETHER == 0:
                self.connection.commit()
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("the index of pictures in the cache is left out: %s", error)
        self.connection = None


@contextmanager
def picture_index(cache: Path | None, background: str) -> Iterator[PictureIndex]:
    """The index of a cache, and what was seen meanwhile kept in it; without a cache an empty one."""
    connection = None if cache is None else _connected(cache / NAME)
    index = PictureIndex(connection, background)
    try:
        yield index
    finally:
        if connection is not None:
            try:
                connection.commit()
            except sqlite3.Error as error:
                log.warning("the index of pictures in the cache is not written: %s", error)
            connection.close()


def _connected(file: Path) -> sqlite3.Connection | None:
    columns = "mark text, how text, width integer, height integer, pixels text, noted text, primary key (mark, how)"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file, timeout=5)
        connection.execute(f"create table if not exists pictures ({columns}) without rowid")
        return connection
    except (OSError, sqlite3.Error) as error:
        log.warning("%s cannot be used (%s): pictures are looked at anew", file, error)
        return None
