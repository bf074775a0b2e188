"""Several concepts: which of them a step sees. Its cost does not grow with their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from erasediff_lora.training.hooks import Hook
from erasediff_lora.training.turns import Turns

SAMPLES = 2
"""Fewest samples of a concept in a batch that it is part of."""


def room(batch_size: int) -> int:
    """How many concepts a joint forget batch has room for."""
    return max(1, batch_size // SAMPLES)


class ConceptTurns(Hook):
    """All concepts in equal parts; if the batch is too small for all, those with most left to forget.

    What is left is the forget loss of a concept over what it was when it was first seen.

    Args:
        names: The concepts.
        batch_size: Of the joint forget batch.
    """

    name = "concept_turns"

    def __init__(self, names: Sequence[str], batch_size: int) -> None:
        self.turns = Turns(names)
        self.room = room(batch_size)
        self.chosen = list(names)

    def before_step(self, step: int) -> None:
        """Whose turn it is."""
        self.chosen = self.turns.next(self.room)

    def forget_concepts(self) -> Sequence[str] | None:
        """Those whose turn it is."""
        return self.chosen

    def after_step(self, done: int, metrics: Mapping[str, float | None]) -> None:
        """Take note of their losses."""
        self.turns.measured(losses_by_concept(metrics, self.chosen))

    def state(self) -> Any:
        """What the turns have come to."""
        return self.turns.state()

    def load_state(self, state: Any) -> None:
        """Put what `state` returned back."""
        self.turns.load_state(state)


def losses_by_concept(metrics: Mapping[str, float | None], names: Sequence[str]) -> dict[str, float]:
    """L_f of those concepts that a step's metrics tell of."""
    found = {name: metrics.get(f"forget_loss/{name}") for name in names}
    return {name: loss for name, loss in found.items() if loss is not None}
