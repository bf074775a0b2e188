"""The mean of the adapter at several of the last steps, which disturbs what is retained less than any one of them.

Averaged parameters lie in flatter regions than those of the last step (Izmailov et al., Averaging Weights Leads to
Wider Optima and Better Generalization, 2018).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from erasediff_lora.recipe import Training
from erasediff_lora.training.parameters import Trainable


class Average:
    """The adapters of a run whose mean is written.

    Args:
        training: `average` adapters, `average_every` steps apart, the last step's among them.
    """

    def __init__(self, training: Training) -> None:
        self.earlier = {training.steps - ago * training.average_every for ago in range(1, training.average)}
        self.adapters: dict[int, dict[str, Tensor]] = {}

    def consider(self, step: int, trainable: Trainable) -> None:
        """Remember the adapter as it is, if this step is one of the earlier ones that count."""
        if step in self.earlier:
            self.adapters[step] = trainable.state()

    def mean(self, last: Trainable) -> dict[str, Tensor] | None:
        """Of the adapters that were remembered and the last one; None if it is alone."""
        if not self.adapters:
            return None
        adapters = [*self.adapters.values(), last.state()]
        return {name: torch.stack([adapter[name] for adapter in adapters]).mean(0) for name in adapters[0]}

    def load_state(self, adapters: Mapping[int, dict[str, Tensor]]) -> None:
        """Put the adapters of a checkpoint back: of a run that was to be shorter, some may not count any more."""
        self.adapters = {step: adapter for step, adapter in adapters.items() if step in self.earlier}
