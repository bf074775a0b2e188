"""Both gradients of a step from one pass over both batches: their samples are two groups of a joint batch.

A pass over twice the samples takes less than two passes, the less so the fewer there are, and holds twice the
activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from erasediff_lora.objectives.base import (
    Batch,
    Network,
    loss_and_gradient,
    losses_and_gradients,
    required_concepts,
)
from erasediff_lora.objectives.condition import Condition


class Gradients(NamedTuple):
    """Of a step.

    Attributes:
        retain_loss: L_r.
        retain: ∇L_r, (P,).
        forget_losses: L_f of each constraint, (C,).
        forget: ∇L_f of each, (C, P).
    """

    retain_loss: Tensor
    retain: Tensor
    forget_losses: Tensor
    forget: Tensor


def gradients(
    network: Network,
    retain: Sequence[Batch],
    forget: Sequence[Batch],
    losses_of: Callable[[Batch], Tensor],
    *,
    each: bool,
) -> Gradients:
    """The losses and gradients of both sets, averaged over processes: by one pass where the network may, else by two.

    Args:
        network: Says by `one_pass` whether it may.
        retain: Micro-batches of D_r.
        forget: As many of D_f.
        losses_of: The losses of a batch's samples.
        each: Whether every concept of D_f has a constraint of its own.
    """
    joint = [_joint(*pair) for pair in zip(retain, forget, strict=True)] if network.one_pass else [None]
    whole = [batch for batch in joint if batch is not None]
    if len(whole) < len(joint):
        return _by_two(network, retain, forget, losses_of, each=each)
    shares = required_concepts(forget).shares if each else (1.0,)
    parts = [
        _sums(network, batch, len(kept), losses_of, len(shares), part if each else None)
        for batch, kept, part in zip(whole, retain, forget, strict=True)
    ]
    losses, found = (torch.stack(some).mean(dim=0) for some in zip(*parts, strict=True))
    losses, found = network.mean(losses), network.mean(found)
    weights = losses.new_tensor([1.0, *shares])
    losses, found = losses / weights, found / weights[:, None]
    return Gradients(losses[0], found[0], losses[1:], found[1:])


def _by_two(
    network: Network,
    retain: Sequence[Batch],
    forget: Sequence[Batch],
    losses_of: Callable[[Batch], Tensor],
    *,
    each: bool,
) -> Gradients:
    def loss_of(batch: Batch) -> Tensor:
        return losses_of(batch).mean()

    retain_loss, retain_gradient = loss_and_gradient(network, retain, loss_of)
    if each:
        return Gradients(retain_loss, retain_gradient, *losses_and_gradients(network, forget, losses_of))
    loss, gradient = loss_and_gradient(network, forget, loss_of)
    return Gradients(retain_loss, retain_gradient, loss[None], gradient[None])


def _sums(
    network: Network,
    joint: Batch,
    retained: int,
    losses_of: Callable[[Batch], Tensor],
    constraints: int,
    shown: Batch | None,
) -> tuple[Tensor, Tensor]:
    """Of the retained samples and of each constraint's the mean over the set's micro-batch, (1 + C,) and (1 + C, P)."""
    assert network.group_gradients is not None
    forgotten = len(joint) - retained
    rows = torch.zeros(forgotten, dtype=torch.long) if shown is None else required_concepts([shown]).rows
    groups = torch.cat([torch.zeros(retained, dtype=torch.long), 1 + rows])
    losses, found = network.group_gradients(lambda: losses_of(joint), groups, 1 + constraints, network.loss_scale)
    sums = losses.new_zeros(1 + constraints).index_add(0, groups.to(losses.device), losses)
    sizes = losses.new_tensor([retained] + [forgotten] * constraints)
    return sums / sizes, found / sizes[:, None]


def _joint(retain: Batch, forget: Batch) -> Batch | None:
    """The samples of both, retained ones first; None if the network cannot take them together."""
    if retain.noisy.shape[1:] != forget.noisy.shape[1:]:
        return None
    weights = None
    if retain.weights is not None or forget.weights is not None:
        weights = torch.cat([_weights(retain), _weights(forget)])
    return Batch(
        torch.cat([retain.noisy, forget.noisy]),
        torch.cat([retain.timesteps, forget.timesteps]),
        Condition.cat([retain.prompts, forget.prompts]),
        torch.cat([retain.target.to(forget.target), forget.target]),
        weights,
    )


def _weights(batch: Batch) -> Tensor:
    return batch.target.new_ones(len(batch)) if batch.weights is None else batch.weights
