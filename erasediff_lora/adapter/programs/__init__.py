"""Programs that load adapter files, and what they make of them. A new one is a module here and a registry line.

The facts come from the programs' own code, whose version and place stand beside each. `docs/programs.md` is made of
them by `scripts/benchmarks/programs_table.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from erasediff_lora.adapter.programs.base import Limit, Loss, Program, Which, families_read, losses
from erasediff_lora.adapter.weights import Adapter
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.registry import PROGRAMS

ALL = "all"


def asked(names: Iterable[str]) -> list[str]:
    """Names in the registry; 'all' means all.

    Raises:
        UserError: If one is unknown.
    """
    names = list(names)
    problems = [
        Problem("--for", name, "is no program that is known.", nearest(name, [*PROGRAMS, ALL]))
        for name in names
        if name != ALL and name not in PROGRAMS
    ]
    if problems:
        raise UserError(*problems)
    return list(PROGRAMS) if ALL in names else list(dict.fromkeys(names))


def losses_in(name: str, format: str, adapter: Adapter[Any]) -> list[Loss]:
    """What a program of the registry makes otherwise of a file in this format."""
    return losses(name, PROGRAMS[name], format, adapter)


def lines_of_best(files: Mapping[Path, tuple[str, Adapter[Any]]]) -> list[str]:
    """What each program loses of an adapter that there are several files of, from the one that suits it best.

    Args:
        files: File -> its format, and what is in it.
    """
    lines = []
    for name in PROGRAMS if files else ():
        found = {file: losses_in(name, *content) for file, content in files.items()}
        best = min(found, key=lambda file: sum(map(_cost, found[file])))
        lines += [f"{best.name} in {loss}" for loss in found[best] if not loss.is_whole]
        if any(loss.is_whole for loss in found[best]):
            lines.append(f"{name} reads none of these files. {found[best][0].remedy}")
    return lines


def _cost(loss: Loss) -> int:
    return loss.layers[0] * (2 if loss.are == "not read" else 1)


__all__ = [
    "ALL",
    "PROGRAMS",
    "Limit",
    "Loss",
    "Program",
    "Which",
    "asked",
    "families_read",
    "lines_of_best",
    "losses",
    "losses_in",
]
