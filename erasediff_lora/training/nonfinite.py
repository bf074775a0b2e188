"""Steps that come out as NaN or Inf: whether they do, which sample makes them, what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.objectives import Batch, Direction, Objective
from erasediff_lora.objectives.base import flatten, mean_squared_error
from erasediff_lora.objectives.condition import Condition

WORDS = {"noisy": "latents", "prompts": "prompt embedding", "target": "denoising target"}
EXTRA_WORDS = {"anchors": "anchor embedding"}
MOST_SKIPPED = 10
"""Steps in a row that may be left out."""


def is_finite(direction: Direction) -> bool:
    """Whether the step can be taken."""
    return all(math.isfinite(value) for value in _decisive(direction).values() if value is not None)


def not_finite(
    step: int, direction: Direction, cause: str, kept: Path | None, skipped: int, dtype: torch.dtype
) -> UserError:
    """What ends the run.

    Args:
        step: The first is 1.
        direction: Of that step.
        cause: From `find_nonfinite_sample`.
        kept: Folder of the adapter before the step, if there is one.
        skipped: Steps that were not taken in a row, this one included.
        dtype: Of the base: half precision may be the cause.
    """
    remedies = [
        f"The adapter before it is in {kept}." if kept else "",
        "Lower training.learning_rate or objective.inner_learning_rate,",
        "use model.dtype: float32," if dtype in (torch.float16, torch.bfloat16) else "",
        "or set training.non_finite: skip." if skipped == 1 else f"or look at the {MOST_SKIPPED} steps before it.",
    ]
    return UserError(
        Problem(
            "loss",
            _decisive(direction),
            f"is not finite at step {step}, because of {cause}; the step was not taken.",
            " ".join(filter(None, remedies)),
        )
    )


def find_nonfinite_sample(objective: Objective, forget: Sequence[Batch], retain: Sequence[Batch]) -> str:
    """The first sample of this process's share that is not finite, or whose loss or gradient is not, in words.

    Args:
        objective: At the parameters that the step started from.
        forget: Micro-batches of D_f, before they were aimed.
        retain: Micro-batches of D_r, likewise.
    """
    for name, batches in (("retain", retain), ("forget", forget)):
        for batch in batches:
            for index in range(len(batch)):
                if (what := _broken(objective, batch[index : index + 1])) is not None:
                    row = "?" if batch.rows is None else int(batch.rows[index])
                    return f"the {what} of {name} sample {row} at timestep {int(batch.timesteps[index])}"
    return "no sample by itself, but their sum"


def _decisive(direction: Direction) -> dict[str, float | None]:
    """The metrics that say whether a step can be taken."""
    return {name: direction.metrics.get(name) for name in ("retain_loss", "forget_loss", "direction_norm")}


def _broken(objective: Objective, sample: Batch) -> str | None:
    for field, words in WORDS.items():
        if not _finite(getattr(sample, field)):
            return words
    for name, value in sample.extras.items():
        if not _finite(value):
            return EXTRA_WORDS.get(name, name)
    network = objective.network
    prediction = network.predict(sample.noisy, sample.timesteps, sample.prompts)
    if not _finite(prediction):
        return "prediction"
    loss = mean_squared_error(prediction, sample.target, sample.weights)
    if not _finite(loss):
        return "loss"
    gradients = torch.autograd.grad(loss, list(network.parameters), allow_unused=True)
    if not _finite(flatten([gradient for gradient in gradients if gradient is not None])):
        return "gradient"
    return None


def _finite(value: Tensor | Condition) -> bool:
    tensors = value.parts.values() if isinstance(value, Condition) else [value]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
