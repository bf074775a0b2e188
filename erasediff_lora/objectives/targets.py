"""What the prediction for every sample of a step is pulled to: decided here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from erasediff_lora.objectives.base import Batch, Network, Objective


@torch.no_grad()
def aim(objective: Objective, forget: Sequence[Batch], retain: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Set the target of every sample of a step; each is a constant.

    | sample | target |
    |---|---|
    | forgotten | y_f, which is the method's own: `Objective.forget_target` |
    | retained | its true denoising target, or the base's prediction, as `Objective.retain_target` says |
    | contrasted: retained, but it shows a forgotten picture | the base's prediction: its noise is the concept's |

    Args:
        objective: At the parameters that the step starts from.
        forget: Micro-batches of D_f.
        retain: Micro-batches of D_r.

    Returns:
        Both, aimed; without those that the method has no loss on.
    """
    targets = [(batch, objective.forget_target(batch)) for batch in forget]
    forget = [replace(batch, target=target) for batch, target in targets if target is not None]
    if objective.retain_target is None:
        return list(forget), []
    whole = objective.retain_target == "base"
    return list(forget), [_aim_retained(objective.network, batch, whole=whole) for batch in retain]


def _aim_retained(network: Network, batch: Batch, *, whole: bool) -> Batch:
    """The base's prediction as the target of all samples, or of the contrasted ones."""

    def base(rows: Tensor | slice) -> Tensor:
        return network.predict_base(batch.noisy[rows], batch.timesteps[rows], batch.prompts[rows])

    if whole:
        return replace(batch, target=base(slice(None)))
    if batch.contrasted is None:
        return batch
    rows = batch.contrasted.nonzero().flatten().to(batch.noisy.device)
    if len(rows):
        return replace(batch, target=batch.target.index_copy(0, rows, base(rows).to(batch.target)))
    if network.is_split:  # another process may have contrasted samples
        base(slice(1))
    return batch
