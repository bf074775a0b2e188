"""Which sample makes a step come out as NaN or Inf."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from erasediff_lora.objectives import Batch, Objective
from erasediff_lora.objectives.base import flatten, mean_squared_error

WORDS = {"noisy": "latents", "prompts": "prompt embedding", "target": "denoising target", "anchors": "anchor embedding"}


def culprit(objective: Objective, forget: Sequence[Batch], retain: Sequence[Batch]) -> str:
    """The first sample of this process's share that is not finite, or whose loss or gradient is not, in words.

    Args:
        objective: At the parameters that the step started from.
        forget: Micro-batches of D_f.
        retain: Micro-batches of D_r.
    """
    for name, batches in (("retain", retain), ("forget", forget)):
        for batch in batches:
            for index in range(len(batch)):
                if (what := _broken(objective, batch[index : index + 1])) is not None:
                    row = "?" if batch.rows is None else int(batch.rows[index])
                    return f"the {what} of {name} sample {row} at timestep {int(batch.timesteps[index])}"
    return "no sample by itself, but their sum"


def _broken(objective: Objective, sample: Batch) -> str | None:
    for field, words in WORDS.items():
        if not _finite(getattr(sample, field)):
            return words
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


def _finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(torch.isfinite(tensor).all())
