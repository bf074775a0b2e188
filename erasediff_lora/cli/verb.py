"""What a verb of the command line is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.paths import expanded


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


def require_none(rest: list[str]) -> None:
    """Refuse words that a verb's parser did not know.

    Raises:
        UserError: If there are any.
    """
    if rest:
        raise UserError(*(Problem("argument", word, "is not expected here.", "See --help.") for word in rest))
