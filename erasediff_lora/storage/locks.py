"""Locks between processes. The system drops them when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    handle = _acquire(path, field, waiting_for)
    try:
        with writable(path, field):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes, so that nobody holds a file that is about to vanish
        os.close(handle)


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


def _acquire(path: Path, field: str, waiting_for: str | None) -> int:
    while True:
        with writable(path, field):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(handle)
                if waiting_for is None:
                    raise Held(owner) from None
                log.info("waiting for %s, which makes %s", owner, waiting_for)
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its last holder removed it meanwhile


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> str:
    try:
        owner: dict[str, Any] = json.loads(os.pread(handle, 1000, 0))
        return f"process {int(owner['pid'])} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
