"""What lies in the cache, what it takes, and making room in it. Only what is recognisably ours is ever removed."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from erasediff_lora.storage.files import TEMPORARY, all_in
from erasediff_lora.storage.locks import Held, lock

KEY = "[0-9a-f]{32}"
KINDS = {
    "encoded sets": rf"(forget|retain)-{KEY}(\.safetensors)?",
    "streamed sets": rf"streamed-{KEY}",
    "preparations of objectives": rf"prepared-{KEY}\.safetensors",
    "embeddings of words": rf"words-{KEY}\.safetensors",
    "drawn pictures": rf"pictures/{KEY}",
    "what attacks found": rf"attacks/.+-{KEY}\.json",
    "index of pictures": r"pictures\.sqlite",
    "left by killed programs": TEMPORARY.pattern,
}
"""What it is, in words -> how its path below the cache reads."""
DAY = 24 * 60 * 60
IN_USE = DAY
"""Seconds in which what was used last is taken to be in use still: large sets are read from the disk all along."""


@dataclass(frozen=True)
class CacheEntry:
    """Something in the cache.

    Attributes:
        kind: Of KINDS.
        path: File or folder.
        size: Bytes on the disk.
        used: When it was last read or written, in seconds since 1970.
    """

    kind: str
    path: Path
    size: int
    used: float


def entries(cache: Path) -> list[CacheEntry]:
    """All that is ours, the least recently used first."""
    found = [entry for path in _candidates(cache) if (entry := _entry(cache, path)) is not None]
    return sorted(found, key=lambda entry: entry.used)


def surplus(
    found: Sequence[CacheEntry], *, keep: int | None = None, older: float | None = None, now: float | None = None
) -> list[CacheEntry]:
    """What to remove.

    Args:
        found: The entries, the least recently used first.
        keep: Bytes that may stay.
        older: Seconds since the last use after which an entry goes.
        now: Seconds since 1970.
    """
    now = time.time() if now is None else now
    total = sum(entry.size for entry in found)
    gone = []
    for entry in found:
        idle = now - entry.used
        too_old = older is not None and idle > older
        too_much = keep is not None and total > keep
        if idle > IN_USE and (too_old or too_much):
            gone.append(entry)
            total -= entry.size
    return gone


def remove(entry: CacheEntry) -> bool:
    """Remove an entry, unless another program is making it; says whether it is gone."""
    try:
        with lock(entry.path.with_name(f"{entry.path.name}.lock"), "cache"):
            shutil.rmtree(entry.path) if entry.path.is_dir() else entry.path.unlink(missing_ok=True)
        return True
    except (Held, PermissionError):  # the latter of Windows, where an open file stays
        return False


def _candidates(cache: Path) -> Iterator[Path]:
    for folder in (cache, cache / "pictures", cache / "attacks"):
        if folder.is_dir():
            yield from folder.iterdir()


def _entry(cache: Path, path: Path) -> CacheEntry | None:
    name = path.relative_to(cache).as_posix()
    kind = next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)), None)
    if kind is None or path.is_symlink():
        return None
    try:
        found = [file.stat() for file in all_in(path)] or [path.stat()]
    except OSError:  # gone meanwhile, or another user's
        return None
    used = max(max(one.st_mtime, one.st_atime) for one in found)
    return CacheEntry(kind, path, sum(one.st_size for one in found), used)
