"""Stopping between two steps."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

log = logging.getLogger(__name__)
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


def is_heard(number: int) -> bool:
    """All are but SIGHUP where `nohup` has switched it off."""
    return signal.Signals(number).name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN


class StopSignal:
    """Turns signals into a flag that the loop reads between two steps; a second one kills.

    They are SIGINT (Ctrl-C), SIGTERM, SIGHUP (a terminal that is closed, unless `nohup` keeps it off) and, of Windows,
    SIGBREAK: as many as the system has.

    Python hands signals to its main thread alone: in another one, of a notebook say, they do what they did before.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in STOPPING if is_heard(s)}
        else:
            log.info("training in a thread: SIGINT and SIGTERM save no checkpoint before they stop the program")
        return self

    def _note(self, signum: int, frame: object) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        self._restore()
