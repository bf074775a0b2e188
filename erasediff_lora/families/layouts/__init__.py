"""Which modules the networks of the published models have, of what shape, and what other programs call them.

They follow from a few numbers each, so neither torch nor the models are needed to know them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a weight -> its shape."""


class Swapped(tuple[str, ...]):
    """The path of one module, the two halves of whose rows lie the other way round in the authors' code."""


class Layout(Protocol):
    """One network."""

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Path of every module with a weight, as in diffusers or transformers, and the weight's shape."""
        ...

    def native(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """A module's name in the authors' own code, and its paths: several where it holds them one below the other."""
        ...
