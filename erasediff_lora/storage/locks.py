"""Locks between processes. The system drops them when their holder dies, however it dies."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from erasediff_lora.storage.files import sweep, writable

log = logging.getLogger(__name__)


class Held(Exception):
    """Another process has the lock.

    Attributes:
        owner: Its 'process N on HOST'.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        super().__init__(owner)


@contextmanager
def lock(path: Path, field: str = "output", waiting_for: str | None = None) -> Iterator[None]:
    """Hold a lock file, which is gone afterwards.

    Args:
        path: The file; its folder is there.
        field: What the user calls the place, for the message when it cannot be written.
        waiting_for: What another holder is making: wait until it is made. None: do not wait.

    Raises:
        Held: If another process has it and `waiting_for` is None.
        UserError: If the file cannot be made.
    """
    held = FileLock(path, on_acquired=_sign)
    with writable(path, field):
        try:
            held.acquire(blocking=False)
        except Timeout:
            owner = _owner(path)
            if waiting_for is None:
                raise Held(owner) from None
            log.info("waiting for %s, which makes %s", owner, waiting_for)
            held.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        with suppress(PermissionError):  # of Windows, where letting go removes the file
            path.unlink(missing_ok=True)  # before the lock goes, so that nobody holds a file that is about to vanish
        held.release()


@contextmanager
def making(entry: Path, what: str) -> Iterator[None]:
    """Hold a cache entry: of several processes one makes it, and the others wait. What a killed one left is removed.

    Args:
        entry: File or folder of the cache.
        what: It is, in words, for those who wait.

    Raises:
        UserError: If the cache cannot be written.
    """
    with writable(entry, "cache"):
        entry.parent.mkdir(parents=True, exist_ok=True)
    with lock(entry.with_name(f"{entry.name}.lock"), "cache", waiting_for=what):
        sweep(entry.parent, entry.name)
        yield


def _sign(handle: int) -> None:
    """Say in the file who holds it."""
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())


def _owner(path: Path) -> str:
    try:
        owner: dict[str, Any] = json.loads(path.read_bytes()[:1000])
        return f"process {int(owner['pid'])} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
