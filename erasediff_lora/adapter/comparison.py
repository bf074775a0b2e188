"""How far two checkpoints are apart, in units that a person can judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from erasediff_lora.adapter.checkpoint import Checkpoint
from erasediff_lora.adapter.weight_file import WeightFile
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import Slot


@dataclass(frozen=True)
class Difference:
    """What two checkpoints of the same network differ in.

    Attributes:
        greatest: The greatest difference of two weights.
        steps: The greatest number of rounding steps between two weights. A step is that of the dtype at the greatest
            value that the weight ever had: 1 is what rounding twice explains.
        equal: Share of the weights that are the same to the last bit, in [0, 1].
        relative: ‖difference‖ / ‖weights‖ of the other checkpoint.
        left: ‖difference‖ / ‖what was taken out‖; None if it is not known, or nothing was.
    """

    greatest: float
    steps: float
    equal: float
    relative: float
    left: float | None

    def __str__(self) -> str:
        text = f"{self.greatest:.3g}, {self.steps:.2f} rounding steps; {self.equal:.2%} of the weights are the same"
        text += f", and the difference is {self.relative:.2g} of their norm"
        if self.left is not None:
            text += f" and {self.left:.2%} of the change that was taken out"
        return text


def compare(one: Path | str, other: Path | str, through: Path | str | None = None) -> Difference:
    """Compare the weights that two checkpoints have in common, whatever their layouts.

    Args:
        one: The checkpoint, such as one that an adapter was taken out of.
        other: What it is compared with, such as the base.
        through: What it was made of, such as the merged model: its greater weights were rounded in greater steps.

    Raises:
        UserError: If they have no weight in common.
    """
    left, right = Checkpoint(one), Checkpoint(other)
    between = None if through is None else Checkpoint(through)
    tally = _Tally()
    for file in left.main_files:
        for name, slot in file.slots.items():
            match = _match(right, name, file, slot)
            if match is not None:
                via = None if between is None else _match(between, name, file, slot)
                tally.count(file.weight(slot), match, via, partial(file.steps, slot))
    if not tally.values:
        raise UserError(Problem("--compare", str(other), f"has no weight in common with {one}.", "Give the base."))
    return tally.result()


def _match(checkpoint: Checkpoint, name: str, file: WeightFile, slot: Slot) -> Tensor | None:
    """The weight of that name, if it has the same shape."""
    found = checkpoint.find(name)
    if found is None or found[0].shape(found[1]) != file.shape(slot):
        return None
    return found[0].weight(found[1])


class _Tally:
    def __init__(self) -> None:
        self.values = 0
        self._greatest = self._steps = 0.0
        self._equal = 0
        self._squares = dict.fromkeys(("difference", "weights", "taken"), 0.0)

    def count(self, mine: Tensor, theirs: Tensor, via: Tensor | None, steps: Callable[[Tensor], Tensor]) -> None:
        a, b = mine.double(), theirs.double()
        difference = (a - b).abs()
        largest = torch.maximum(a.abs(), b.abs())
        if via is not None:
            largest = torch.maximum(largest, via.double().abs())
            self._squares["taken"] += float((via.double() - b).square().sum())
        self.values += a.numel()
        self._equal += int((difference == 0).sum())
        self._greatest = max(self._greatest, float(difference.max()))
        self._steps = max(self._steps, float((difference / steps(largest)).max()))
        self._squares["difference"] += float(difference.square().sum())
        self._squares["weights"] += float(b.square().sum())

    def result(self) -> Difference:
        error, weights, taken = (self._squares[name] for name in ("difference", "weights", "taken"))
        return Difference(
            self._greatest,
            self._steps,
            self._equal / self.values,
            (error / weights) ** 0.5 if weights else float(error > 0),
            (error / taken) ** 0.5 if taken else None,
        )
