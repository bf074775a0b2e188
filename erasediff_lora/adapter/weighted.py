"""An adapter and the strength that it acts with."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.formats import NOTHING, Asked
from erasediff_lora.adapter.weights import Adapter, LoraAdapter
from erasediff_lora.errors import Problem, UserError

log = logging.getLogger(__name__)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Weighted:
    """An adapter with the strength that it acts with, and the name that the user gave it.

    Raises:
        UserError: If the strength is not finite.
    """

    adapter: Adapter[Any]
    strength: float = 1.0
    source: str = "adapter"

    def __post_init__(self) -> None:
        _require_finite(self.strength, self.source)

    @classmethod
    def read(cls, path: Path | str, strength: float = 1.0, asked: Asked = NOTHING) -> Weighted:
        """Read the adapter from a file or a folder.

        Raises:
            UserError: If it cannot be used, or the strength is not finite.
        """
        _require_finite(strength, path)
        return cls(formats.read_any(path, asked), strength, str(path))

    @classmethod
    def parse(cls, text: str, asked: Asked = NOTHING) -> Weighted:
        """Read 'PATH' or 'PATH:STRENGTH'. What is there under the whole text is a path, such as a folder 'lora_12:30'.

        Args:
            text: Of the command line.
            asked: What the user says of the file.

        Raises:
            UserError: If the adapter cannot be used, or the strength is no finite number.
        """
        path, separator, number = text.rpartition(":")
        if not (separator and path) or _exists(text):
            return cls.read(text, asked=asked)
        if _NUMBER.fullmatch(number):
            return cls.read(path, float(number), asked)
        if _exists(path):
            raise UserError(Problem("strength", number, f"of {path} is no number.", f"Write {path}:0.8, for example."))
        return cls.read(text, asked=asked)

    def plain(self, verb: str) -> LoraAdapter:
        """The adapter, if it is LoRA all over, and no DoRA.

        Raises:
            UserError: If it is not.
        """
        return self.adapter.plain(verb, self.source, dora=False)

    def warn_of_strength(self) -> None:
        """Say so if the strength lies outside [0, 1]."""
        if not 0 <= self.strength <= 1:
            log.warning(
                "warning: strength = %s of %s lies outside [0, 1]: it %s. Look at what the result draws.",
                self.strength,
                self.source,
                "strengthens what is to be erased" if self.strength < 0 else "was not trained and may damage the rest",
            )


def _require_finite(strength: float, source: Path | str) -> None:
    if not math.isfinite(strength):
        raise UserError(
            Problem("strength", strength, f"of {source} is not finite.", "Give a number; 1 is what was trained.")
        )


def _exists(text: str) -> bool:
    return Path(text).expanduser().exists()
