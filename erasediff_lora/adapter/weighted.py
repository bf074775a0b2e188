"""An adapter and the strength that it acts with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.weights import LoraAdapter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weighted:
    """An adapter with the strength that it acts with, and the name that the user gave it."""

    adapter: LoraAdapter
    strength: float = 1.0
    source: str = "adapter"

    @classmethod
    def read(cls, path: Path | str, strength: float = 1.0) -> Weighted:
        """Read the adapter from a file or a folder.

        Raises:
            UserError: If it cannot be used.
        """
        return cls(formats.read(path), strength, str(path))

    @classmethod
    def parse(cls, text: str) -> Weighted:
        """Read 'PATH' or 'PATH:STRENGTH'.

        Raises:
            UserError: If the adapter cannot be used.
        """
        path, separator, number = text.rpartition(":")
        try:
            strength = float(number)
        except ValueError:
            separator = ""
        return cls.read(path, strength) if separator and path else cls.read(text)

    def warn_of_strength(self) -> None:
        """Say so if the strength lies outside [0, 1]."""
        if not 0 <= self.strength <= 1:
            log.warning(
                "warning: strength = %s of %s lies outside [0, 1]: it %s. Look at what the result draws.",
                self.strength,
                self.source,
                "strengthens what is to be erased" if self.strength < 0 else "was not trained and may damage the rest",
            )
