"""What programs will make otherwise of adapter files, in lines for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from erasediff_lora.errors import UserError

if TYPE_CHECKING:
    from erasediff_lora.adapter.weights import StoredAdapter


def lines_for(names: Iterable[str], format: str, adapter: StoredAdapter) -> list[str]:
    """A line for each loss of each program, or one that says that there is none."""
    from erasediff_lora.adapter.programs import PROGRAMS, losses_in

    lines = []
    for name in names:
        found = losses_in(name, format, adapter)
        lines += list(map(str, found)) or [
            f"{name} {PROGRAMS[name].version}: nothing is lost of {len(adapter.layers)} layers"
        ]
    return lines


def lines_of_file(file: Path) -> list[str]:
    """What the programs that read files of this kind lose; those that do not read it share a line.

    Nothing, if the file cannot be told anything of without the user's help.
    """
    from erasediff_lora.adapter.formats import describe
    from erasediff_lora.adapter.programs import PROGRAMS, losses_in

    try:
        format, adapter = describe(file)
    except UserError:
        return []
    lines: list[str] = []
    strangers: dict[str, list[str]] = {}
    for name in PROGRAMS:
        for loss in losses_in(name, format, adapter):
            if loss.is_whole:
                strangers.setdefault(loss.remedy, []).append(f"{loss.program} {loss.version}")
            else:
                lines.append(str(loss))
    return lines + [f"{', '.join(them)}: do not read this file. {remedy}" for remedy, them in strangers.items()]


def lines_of_folder(folder: Path) -> list[str]:
    """Of the files of one adapter in a folder, each program's losses from the one that suits it best."""
    from erasediff_lora.adapter.formats import describe
    from erasediff_lora.adapter.programs import lines_of_best

    files = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            files[file] = describe(file)
        except UserError:
            continue
    return lines_of_best(files)
