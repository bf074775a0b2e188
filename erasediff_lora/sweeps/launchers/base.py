"""What a launcher is, and the run that it is given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from erasediff_lora.errors import Problem, UserError


@dataclass(frozen=True)
class Job:
    """A run that is to be done.

    Attributes:
        name: Of the run.
        recipe: Its recipe; a file that every machine sees.
        log: Where its output goes.
        overwrite: Whether it starts anew where there is one already, instead of going on with it.
    """

    name: str
    recipe: Path
    log: Path
    overwrite: bool = False

    @property
    def command(self) -> list[str]:
        """Trains and evaluates, or goes on with that."""
        how = "--overwrite" if self.overwrite else "--resume"
        return [sys.executable, "-m", "erasediff_lora", "train", str(self.recipe), how]


def run_job(job: Job) -> int:
    """Do a run in a process of its own, wherever this is called; returns its exit status."""
    with job.log.open("w", encoding="utf-8") as output:
        return subprocess.run(job.command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode


class Launcher(Protocol):
    """A way to start runs. Of another package it is an entry point in the group `erasediff_lora.launchers`.

    Its constructor takes how many runs go at a time (None: as many as it finds room for) and the options that
    `--launch name=value` gave.
    """

    def __init__(self, at_a_time: int | None, options: Mapping[str, Any]) -> None:
        """Raises UserError if an option is not known, or what it works with is not installed."""
        ...

    def launch(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """Start the runs, and yield each with its exit status as it ends.

        Where the caller stops listening, as with Ctrl-C, those that go on are ended.
        """
        ...


def not_installed(launcher: str) -> UserError:
    """The package of that name is missing; it is an extra of this one."""
    what = f"needs the package {launcher}, which is not installed."
    return UserError(Problem("--launcher", launcher, what, f"pip install 'erasediff-lora[{launcher}]'"))


def refused(launcher: str, error: Exception) -> UserError:
    """What a scheduler says of its options."""
    return UserError(Problem("--launch", launcher, f"refuses them: {error}", "Its documentation lists what it takes."))
