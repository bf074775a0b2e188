"""Stopping between two steps."""

from __future__ import annotations

import signal


class StopSignal:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between two steps; a second one kills."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> StopSignal:
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, signum: int, frame: object) -> None:
        self.signum = signum
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
