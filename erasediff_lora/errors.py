"""What a user sees when something they gave cannot be used, or when they stop a run."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LONGEST, LONGEST_PATH = 120, 400
"""Characters of a value in a message; the end of a path is what tells it from others."""


@dataclass(frozen=True)
class Problem:
    """One complaint: the field, its value, what is wrong and what to do about it."""

    field: str
    value: object
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.field} = {brief(self.value)}: {self.what}" + (f" {self.remedy}" if self.remedy else "")
        return printable(text).replace("\n", "\\n")  # one line, whatever a name has in it


def brief(value: object) -> str:
    """A value as messages show it: of a long one the beginning."""
    shown = repr(value)
    longest = LONGEST_PATH if isinstance(value, str) and ("/" in value or "\\" in value) else LONGEST
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def printable(text: str) -> str:
    """Text as a terminal may show it: names from foreign files can hold commands to it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def is_text(text: str) -> bool:
    """Whether it can be written and read: JSON may hold halves of characters, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class UserError(Exception):
    """Bad input. The command line prints it without a traceback and exits with status 2."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(f"  - {problem}" for problem in problems))


class Interrupted(Exception):
    """A signal to stop: a checkpoint has been saved."""

    def __init__(self, signum: int, folder: Path, step: int) -> None:
        self.signum = signum
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; a checkpoint is saved. "
            f"Run the same command with --resume to go on (output: {folder})."
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy that names the closest known word, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Choose one of: {', '.join(names)}."
