"""The mean of the adapter at several of the last steps, which disturbs what is retained less than any one of them.

Averaged parameters lie in flatter regions than those of the last step (Izmailov et al., Averaging Weights Leads to
Wider Optima and Better Generalization, 2018).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from erasediff_lora.recipe import Training
from erasediff_lora.trainables import Trainable


class Average:
    """The adapters of a run whose mean is written.

    Args:
        training: `average` adapters, `average_every` steps apart, the last step's among them.
    """

    def __init__(self, training: Training) -> None:
        ago = range(0, training.average * training.average_every, training.average_every)
        self.steps = {training.steps - steps for steps in ago}
        self.adapters: dict[int, dict[str, Tensor]] = {}

    def consider(self, step: int, trainable: Trainable) -> None:
        """Remember the adapter as it is, if this step is one of those that count."""
        if len(self.steps) > 1 and step in self.steps:
            self.adapters[step] = trainable.state()

    def mean(self) -> dict[str, Tensor] | None:
        """Of the adapters that were remembered; None if there are none."""
        adapters = list(self.adapters.values())
        if not adapters:
            return None
        return {name: torch.stack([adapter[name] for adapter in adapters]).mean(0) for name in adapters[0]}

    def load_state(self, adapters: Mapping[int, dict[str, Tensor]]) -> None:
        """Put the adapters of a checkpoint back: of a run that was to be shorter, some may not count any more."""
        self.adapters = {step: adapter for step, adapter in adapters.items() if step in self.steps}
