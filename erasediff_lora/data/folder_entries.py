"""What lies below a folder of pictures, and which of it lies elsewhere in truth."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies below a folder and is none itself.

    Attributes:
        file: Its path.
        relative: The same from the folder on.
        is_file: Whether it is a file, or a link to one.
        leads_out: Whether it lies elsewhere: somebody else may have made the links.
    """

    file: Path
    relative: Path
    is_file: bool
    leads_out: bool


def files_below(folder: Path) -> list[Entry]:
    """All files, in linked folders as well, in the order of their paths."""
    root, found, seen = Path(os.path.realpath(folder)), [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here, lies = Path(place), os.path.realpath(place)
        inside, is_outside = here.relative_to(folder), not Path(lies).is_relative_to(root)
        with os.scandir(place) as entries:  # says without a look at each file what it is
            kinds = {entry.name: (_is_file(entry), entry.is_symlink()) for entry in entries}
        for name in names:
            file, (is_file, is_link) = here / name, kinds.get(name, (False, False))
            leads_out = not Path(os.path.realpath(file)).is_relative_to(root) if is_link else is_outside
            found.append(Entry(file, inside / name, is_file, leads_out))
        seen.add(lies)
        folders[:] = [name for name in folders if os.path.realpath(here / name) not in seen]  # no circles
    return sorted(found, key=lambda entry: entry.relative.parts)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False
