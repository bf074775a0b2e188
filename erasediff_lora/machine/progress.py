"""Progress: a bar on a terminal, and elsewhere, in a log, a line every so often."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm as bar

SECONDS = 30
"""Between two lines of a log."""


class _Lines:
    """A file in which a bar's drawings become lines of their own; what wipes it is left out."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._last = file, ""

    def write(self, text: str) -> None:
        if (line := text.strip()) and line != self._last:
            self._file.write(line + "\n")
            self._last = line

    def flush(self) -> None:
        self._file.flush()


def tqdm(iterable: Iterable[Any] | None = None, **options: Any) -> bar[Any]:
    """Tqdm's bar; in a log its first line comes after SECONDS: what is short is not worth one."""
    if not sys.stderr.isatty():
        plain = {"file": _Lines(sys.stderr), "ascii": True, "ncols": 80, "delay": SECONDS}
        options = plain | {"mininterval": SECONDS, "maxinterval": SECONDS} | options
    return bar(iterable, **options)
