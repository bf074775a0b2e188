"""Enough and no more: a run without a number of steps ends when every concept is gone, by its forget loss.

The loss of a concept is taken on pictures and noise that no step sees, and divided by the base's own: 1 is what the
base makes of it, 0 is what it makes of what takes its place. That needs no judge.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erasediff_lora.data.batches import ForgetSampler
from erasediff_lora.data.sets import EncodedSet
from erasediff_lora.objectives import Batch, Objective, aim
from erasediff_lora.objectives.base import losses_by_concept, squared_errors
from erasediff_lora.recipe.tables import Training
from erasediff_lora.training.concept_turns import room
from erasediff_lora.training.hooks import Hook

log = logging.getLogger(__name__)
HELD_OUT = 4
"""Pictures of a concept that are measured on, at most a quarter of its own."""
DRAWS = 4
"""Batches that a concept is measured on."""
EVERY = 10
"""Steps between measurements; with more concepts than a batch has room for, as many times that."""
UNSEEN = 2_000_000
"""The number of the first batch that is measured on: no step has it."""
STANDS = 0.9


def hold_out(data: EncodedSet) -> tuple[EncodedSet, EncodedSet]:
    """The set to train on, and a few pictures of each concept to measure on; both have a concept's only picture."""
    kept, held = [], []
    for concept in data.concepts.unique().tolist():
        rows = (data.concepts == concept).nonzero().flatten()
        count = min(HELD_OUT, len(rows) // 4)
        held.append(rows[:count] if count else rows[:1])
        kept.append(rows[count:])
    return data.select(torch.cat(kept).sort().values), data.select(torch.cat(held).sort().values)


class UntilGone(Hook):
    """How much of every concept is left.

    Args:
        training: Its `gone`, and the batch size.
        objective: Aims the samples, and predicts.
        sampler: Draws from the pictures that no step sees.
        names: The concepts.
    """

    name = "until_gone"

    def __init__(self, training: Training, objective: Objective, sampler: ForgetSampler, names: Sequence[str]) -> None:
        self.training, self.objective = training, objective
        self.sampler, self.names = sampler, list(names)
        size = room(training.batch_size)
        self.groups = [self.names[start : start + size] for start in range(0, len(self.names), size)]
        self.every = EVERY * len(self.groups)
        self.base: dict[str, float] = {}
        self.left: dict[str, list[float]] = {}
        """Of each concept the share of the base's loss, by measurement."""
        self.opposed = 0

    def before_step(self, step: int) -> None:
        """Before the first one the base is measured."""
        if not self.base:
            self.base = self._measured(base=True)

    def after_step(self, done: int, metrics: Mapping[str, float | None]) -> None:
        """Measure, if it is time; at the last step say what is not gone, and the likely cause."""
        self.opposed += bool(metrics.get("constraints_opposed"))
        if done % self.every == 0 or done == self.training.max_steps:
            for name, loss in self._measured(base=False).items():
                self.left.setdefault(name, []).append(loss / max(self.base[name], 1e-12))
            if self.is_enough():
                log.info("every concept is gone after %d steps: %s", done, self._told(self.names))
            elif done == self.training.max_steps:
                for name in self._standing():
                    log.warning("%s is not gone after %d steps: %s", name, done, self._cause(name))

    def is_enough(self) -> bool:
        """Whether no more than the stated share of any concept is left."""
        return bool(self.left) and not self._standing()

    def metrics(self) -> dict[str, float | None]:
        """What is left of every concept, at the last measurement."""
        return {f"left/{name}": values[-1] for name, values in self.left.items()}

    def state(self) -> Any:
        """What was measured."""
        return {"base": self.base, "left": self.left, "opposed": self.opposed}

    def load_state(self, state: Any) -> None:
        """Put what `state` returned back."""
        self.base, self.left, self.opposed = dict(state["base"]), dict(state["left"]), state["opposed"]

    def _standing(self) -> list[str]:
        return [name for name in self.names if not self.left[name][-1] <= self.training.gone]

    def _told(self, names: Sequence[str]) -> str:
        return ", ".join(f"{name} {self.left[name][-1]:.0%}" for name in names)

    def _cause(self, name: str) -> str:
        left = self.left[name]
        told = f"{left[-1]:.0%} of the base's forget loss is left. "
        usual = sorted(self.base.values())[len(self.base) // 2]
        if not math.isfinite(left[-1]):
            return told + "The loss is not finite."
        if self.base[name] < usual / 10:
            return told + "To the base it hardly differs from what is to take its place: name another anchor."
        if left[-1] > STANDS:
            return told + "It has not begun to go: raise training.learning_rate or objective.eta."
        if len(left) > 1 and left[-1] < 0.95 * left[-2]:
            return told + "It is still going: raise training.max_steps."
        if self.opposed:
            return told + "Its constraint is opposed by others: give them anchors that are not each other's neighbours."
        return told + "It has come to a halt: raise objective.eta or adapter.rank."

    @torch.no_grad()
    def _measured(self, *, base: bool) -> dict[str, float]:
        """The forget loss of every concept."""
        total = dict.fromkeys(self.names, 0.0)
        network = self.objective.network
        losses_of = self._losses_of_base if base else self.objective.losses
        for number, names in enumerate(self.groups):
            for draw in range(DRAWS):
                drawn = self.sampler.draw(UNSEEN + number * DRAWS + draw, names)
                batches, _ = aim(self.objective, drawn, [])
                losses = losses_by_concept(network, batches, losses_of)
                shown = batches[0].shown
                assert shown is not None
                for name, loss in zip(shown.names, losses.tolist(), strict=True):
                    total[name] += loss / DRAWS
        return total

    def _losses_of_base(self, batch: Batch) -> Tensor:
        prediction = self.objective.network.predict_base(batch.noisy, batch.timesteps, batch.prompts)
        return squared_errors(prediction, batch.target)
