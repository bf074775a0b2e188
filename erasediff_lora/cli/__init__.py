"""The command line: `erasediff-lora VERB …`."""

from __future__ import annotations

import argparse
import codecs
import errno
import io
import logging
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, NoReturn, TextIO

from erasediff_lora import __version__
from erasediff_lora.cli import adapters, cache, evaluation, init, planning, playing, recipes, running, sweeps
from erasediff_lora.errors import Interrupted, UserError, printable
from erasediff_lora.machine.network import is_asked_by_parent, offline
from erasediff_lora.training.stop_signal import STOPPING, is_heard

OFFLINE = "--offline"
"""Stands anywhere, before the verb or behind it."""
VERBS = running.VERBS | init.VERBS | recipes.VERBS | evaluation.VERBS | playing.VERBS | sweeps.VERBS | adapters.VERBS
VERBS |= planning.VERBS | cache.VERBS
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
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_offline = OFFLINE in words or is_asked_by_parent()
    parsed, rest = _parser().parse_known_args([word for word in words if word != OFFLINE])
    parsed.offline = is_offline
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(_Plain())
    is_first = os.environ.get("RANK", "0") == "0"  # of several processes, the others would say it all once more
    logging.getLogger("erasediff_lora").setLevel(logging.INFO if is_first else logging.WARNING)
    try:
        with _clean_termination(), offline(is_offline), redirect_stdout(_Shown(sys.stdout)):
            VERBS[parsed.verb].run(parsed, rest)
        sys.stdout.flush()
    except UserError as error:
        count = len(error.problems)
        print(f"erasediff-lora {parsed.verb}: {count} problem{'s' * (count > 1)}:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("stopped; nothing half-written is left", file=sys.stderr)
        return 128 + (stop.signum if isinstance(stop, _Terminated) else signal.SIGINT)
    except OSError as error:
        if not _is_closed_pipe(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + SIGPIPE
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    return 0


def program(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb, as a process whose only work it is, and end with its exit status.

    One of several ends as multiprocessing ends its own, without taking the interpreter down: the threads that torch
    keeps for split weights may still let go of their last tensor then, which aborts the process.
    """
    status = main(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


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
    _add_offline(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        own = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary,
            epilog=verb.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(own)
        _add_offline(own)
    return parser


def _add_offline(parser: argparse.ArgumentParser) -> None:
    """For the help: it is taken out before."""
    parser.add_argument(OFFLINE, action="store_true", help="reach no other machine: only what is on this one is used")


class _Shown(io.TextIOBase):
    """A stream on which commands to the terminal, in names from files of strangers, are shown and not obeyed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


class _Plain(logging.Formatter):
    """The message alone, as `_Shown` writes it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


SIGPIPE = 13
"""A status that shells know; Windows has no such signal."""


def _is_closed_pipe(error: OSError) -> bool:
    """Whether the reader has seen enough, as with `| head`; Windows says so in other words."""
    return isinstance(error, BrokenPipeError) or (sys.platform == "win32" and error.errno == errno.EINVAL)


class _Terminated(KeyboardInterrupt):
    """SIGTERM and the like, made to run the same clean-up as Ctrl-C."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__()


TERMINATING = [number for number in STOPPING if number != signal.SIGINT]


@contextmanager
def _clean_termination() -> Iterator[None]:
    def stop(signum: int, frame: object) -> None:
        raise _Terminated(signum)

    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody handle signals
        yield
        return
    previous = {number: signal.signal(number, stop) for number in TERMINATING if is_heard(number)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
