"""The mean of the adapter at several of the last steps, which disturbs what is retained less than any one of them.

Averaged parameters lie in flatter regions than those of the last step (Izmailov et al., Averaging Weights Leads to
Wider Optima and Better Generalization, 2018).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from erasediff_lora.recipe import Training
from erasediff_lora.training.hooks import Hook
from erasediff_lora.training.trainables import Trainable

log = logging.getLogger(__name__)


class WeightAverage(Hook):
    """The sum of the adapters of a run whose mean is written, but for the last one.

    Args:
        training: `average` adapters, `average_every` steps apart, the last step's among them.
        trainable: The adapter in training.
    """

    name = "average"

    def __init__(self, training: Training, trainable: Trainable) -> None:
        self.earlier = {training.most_steps - ago * training.average_every for ago in range(1, training.average)}
        self.trainable = trainable
        self.steps: list[int] = []
        """Those that are in the sum."""
        self.total: dict[str, Tensor] = {}
        self.done = 0

    def after_step(self, done: int, metrics: Mapping[str, float | None]) -> None:
        """Add the adapter as it is, if this step is one of the earlier ones that count."""
        self._add(done)

    def _add(self, done: int) -> None:
        self.done = done
        if done in self.earlier and done not in self.steps:
            adapter = self.trainable.state()
            self.total = {name: self.total[name] + t for name, t in adapter.items()} if self.total else adapter
            self.steps.append(done)

    def adapter(self) -> Mapping[str, Tensor] | None:
        """The mean of those that were added and the last one; None if it is alone."""
        if not self.steps:
            return None
        count = len(self.steps) + 1
        return {name: (self.total[name] + last) / count for name, last in self.trainable.state().items()}

    def state(self) -> dict[str, Any]:
        """The sum, and what is in it."""
        return {"steps": self.steps, "total": self.total, "done": self.done}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put what `state` returned back: of a run of another length, the sum may not count any more."""
        if set(state["steps"]) <= self.earlier:
            self.steps, self.total = list(state["steps"]), dict(state["total"])
        self._add(state["done"])  # the checkpoint's step may count now
        if gone := sorted(step for step in self.earlier - set(self.steps) if 0 < step <= state["done"]):
            text = "the mean of the last adapters leaves out those of steps %s: the run was to end elsewhere"
            log.warning(text, ", ".join(map(str, gone)))
