"""What a verb of the command line is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


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
