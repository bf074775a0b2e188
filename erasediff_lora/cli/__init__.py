"""The command line: `erasediff-lora VERB …`."""

from __future__ import annotations

import argparse
import codecs
import io
import logging
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from erasediff_lora import __version__
from erasediff_lora.cli import adapters, cache, evaluation, init, playing, recipes, running, sweeps
from erasediff_lora.errors import Interrupted, UserError

VERBS = running.VERBS | init.VERBS | recipes.VERBS | evaluation.VERBS | playing.VERBS | sweeps.VERBS | adapters.VERBS
VERBS |= cache.VERBS
"""In the order of `--help`, which imports none of what they work with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments: The words of the command line; this process's own if they are left out.

    Returns:
        The exit status: 0, 2 for bad input, 128 + n when stopped by signal n.
    """
    _quiet_libraries()
    _write_to_any_terminal()
    parsed, rest = _parser().parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    is_first = os.environ.get("RANK", "0") == "0"  # of several processes, the others would say it all once more
    logging.getLogger("erasediff_lora").setLevel(logging.INFO if is_first else logging.WARNING)
    try:
        with _clean_termination():
            VERBS[parsed.verb].run(parsed, rest)
        sys.stdout.flush()
    except UserError as error:
        count = len(error.problems)
        print(f"erasediff-lora {parsed.verb}: {count} problem{'s' * (count > 1)}:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("stopped; nothing half-written is left", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    except BrokenPipeError:  # the reader has seen enough, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    return 0


class _Parser(argparse.ArgumentParser):
    """Takes options with dashes where they have underscores."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._spelled(word) for word in words], namespace)

    def _spelled(self, word: str) -> str:
        name, *value = word.split("=", 1)
        underscored = "--" + name[2:].replace("-", "_")
        is_meant = name.startswith("--") and underscored in self._option_string_actions
        return "=".join([underscored, *value]) if is_meant else word


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="erasediff-lora", description="Remove a concept from a text-to-image model with a small LoRA file."
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        verb.add_arguments(
            verbs.add_parser(
                name,
                help=verb.summary,
                description=verb.summary,
                epilog=verb.epilog,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
        )
    return parser


class _Terminated(KeyboardInterrupt):
    """SIGTERM, made to run the same clean-up as Ctrl-C."""


@contextmanager
def _clean_termination() -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


PLAIN = {
    **{"…": "...", "–": "-", "−": "-", "×": "x", "≥": ">=", "≤": "<="},
    **{"∇": "grad ", "λ": "lambda", "Δ": "d", "ε": "eps"},
}
"""Characters that not every terminal has -> what stands for them there."""


def _write_to_any_terminal() -> None:
    """Where the encoding of the output lacks a character, something like it is written instead of nothing at all."""

    def alike(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return "".join(map(_plain, error.object[error.start : error.end])), error.end

    codecs.register_error("alike", alike)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="alike")


def _plain(character: str) -> str:
    return PLAIN.get(character) or unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def _quiet_libraries() -> None:
    """Keep off the user's screen what libraries say about their own loading and packages that we don't use."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_MININTERVAL", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
