"""What a verb of the command line is."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.paths import expanded

MOST_BYTES = 2**60


@dataclass(frozen=True)
class Verb:
    """A verb.

    Attributes:
        summary: For `--help`.
        add_arguments: Declares its arguments on its parser.
        run: Does the work, given the parsed arguments and the words that the parser did not know.
        epilog: More help.
    """

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace, list[str]], None]
    epilog: str = ""


def user_path(text: str) -> Path:
    """The type of an argument that is a path.

    Raises:
        ArgumentTypeError: If it can be none.
    """
    try:
        return expanded(text, "path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error.problems[0])) from None


def bytes_of(flag: str, text: str) -> int:
    """'8GiB', '8 GB', '512MiB' and the like; a bare number is GiB.

    Raises:
        UserError: If it is none of these, or nothing, or more than there is.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i)?B?", text.strip(), re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < MOST_BYTES:
        raise UserError(Problem(flag, text, "is no size.", "Write for example 8GiB or 512MiB."))
    number, prefix, binary = float(match[1]), match[2].upper() or "G", bool(match[3]) or not match[2]
    return int(number * (1024 if binary else 1000) ** (1 + "KMGT".index(prefix)))


def require_none(rest: list[str]) -> None:
    """Refuse words that a verb's parser did not know.

    Raises:
        UserError: If there are any.
    """
    if rest:
        raise UserError(*(Problem("argument", word, "is not expected here.", "See --help.") for word in rest))
