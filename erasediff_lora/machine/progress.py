"""Progress: a bar on a terminal, and elsewhere, in a log, a line every so often."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm as bar

SECONDS = 30
"""Between two lines of a log."""
COLUMNS = 110
"""Of such a line."""


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


class WholeRun:
    """How far a run of several stages has come: beside its own, a bar shows what is left of all of them.

    Work is in pictures that go through the network, a backward pass being as much as two forward.
    """

    def __init__(self) -> None:
        self._begin({})

    @contextmanager
    def of(self, stages: Mapping[str, float]) -> Iterator[None]:
        """A run of these stages, by the work of each, which begins with the first of them."""
        self._begin(stages)
        self.enter(next(iter(stages)))
        try:
            yield
        finally:
            self._begin({})

    def _begin(self, stages: Mapping[str, float]) -> None:
        self.stages, self.stage = dict(stages), ""
        self.done = self.worked = 0.0
        self.began = time.monotonic()

    def enter(self, stage: str) -> None:
        """Those before it are over, whether or not they had to do all that was planned."""
        if stage not in self.stages:
            return
        names = list(self.stages)
        self.stage, self.done = stage, sum(self.stages[name] for name in names[: names.index(stage)])

    def add(self, work: float, *, is_done: bool = True) -> None:
        """So much has been done, or need not be, since it was done before."""
        if not self.stage:
            return
        names = list(self.stages)
        end = sum(self.stages[name] for name in names[: names.index(self.stage) + 1])
        self.done = min(self.done + work, end)
        self.worked += work * is_done

    def told(self, now: float | None = None) -> str:
        """What is left, once there is something to go by."""
        total = sum(self.stages.values())
        if not self.stage or self.worked < KNOWN * total:
            return ""
        seconds = (time.monotonic() if now is None else now) - self.began
        left = duration((total - self.done) * seconds / self.worked)
        return f" [whole run: {self.done / total:.0%}, about {left} left]"


KNOWN = 0.01
"""Share of a run's work that has to be done before anything is said of the rest."""
whole = WholeRun()
"""That of this process."""


class _Bar(bar):  # type: ignore[type-arg]
    @property
    def format_dict(self) -> dict[str, Any]:
        return dict(super().format_dict) | {"whole": whole.told()}


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def tqdm(iterable: Iterable[Any] | None = None, **options: Any) -> bar[Any]:
    """Tqdm's bar, and what is left of the whole run; in a log its first line comes after SECONDS, if it lasts."""
    if not sys.stderr.isatty():
        plain = {"file": _Lines(sys.stderr), "ascii": True, "ncols": COLUMNS, "delay": SECONDS}
        options = plain | {"mininterval": SECONDS, "maxinterval": SECONDS} | options
    if whole.stages:
        options = {"bar_format": "{l_bar}{bar}{r_bar}{whole}"} | options
    return _Bar(iterable, **options)
