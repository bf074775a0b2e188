"""What an objective is given, and what it must return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), t (B,), prompt embeddings (B, L, D)) -> prediction (B, C, H, W)."""


@dataclass(frozen=True)
class Batch:
    """Noised samples of one set.

    Attributes:
        noisy: x_t, (B, C, H, W).
        timesteps: t, (B,) int64.
        prompts: Embeddings of the captions, (B, L, D).
        target: True denoising target of the scheduler's prediction type, (B, C, H, W).
        anchors: Embeddings of the anchor prompts (forget set only), (B, L, D).
        empty: Embedding of the empty prompt, (B, L, D).
        uniform: A draw from U(0, 1) of the prediction's shape (forget set only).
        weights: Per-sample loss weights, (B,).
    """

    noisy: Tensor
    timesteps: Tensor
    prompts: Tensor
    target: Tensor
    anchors: Tensor | None = None
    empty: Tensor | None = None
    uniform: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class Direction:
    """The update direction as one flat vector, and the quantities to log.

    The optimizer descends along it: it takes the place of the gradient.
    """

    vector: Tensor
    metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """The network as objectives see it.

    Attributes:
        parameters: The adapter's trainable tensors, θ.
        predict: ε_θ, with the adapter on.
        predict_base: ε_0, the same network with the adapter off.
        mean: Averages a tensor over all processes (the identity for one).
        loss_scale: Multiplies losses before their backward pass; gradients come back unscaled.
    """

    parameters: Sequence[Tensor]
    predict: Predict
    predict_base: Predict
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    loss_scale: float = 1.0


class Objective(Protocol):
    """A method. One file each, registered in `erasediff_lora.objectives`."""

    def direction(self, forget: Sequence[Batch], retain: Sequence[Batch]) -> Direction:
        """Return the direction for the current parameters.

        Args:
            forget: Micro-batches of D_f.
            retain: Micro-batches of D_r.
        """
        ...

    @property
    def notes(self) -> list[str]:
        """What a user should know about the chosen options, said once at the start."""
        ...


def mean_squared_error(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over batch and elements of ‖target − prediction‖², in float32 at least, weighted per sample."""
    errors = (_full(prediction) - _full(target)).pow(2).flatten(1).mean(dim=1)
    return (errors if weights is None else errors * weights).mean()


def loss_and_gradient(
    network: Network, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean loss over the micro-batches and its flat gradient, averaged over processes."""
    total = torch.zeros((), device=network.parameters[0].device)
    gradient: Tensor | None = None
    for batch in batches:
        loss = loss_of(batch) / len(batches)
        grads = torch.autograd.grad(loss * network.loss_scale, list(network.parameters), allow_unused=True)
        flat = flatten(
            [g if g is not None else torch.zeros_like(p) for g, p in zip(grads, network.parameters, strict=True)]
        )
        gradient = flat if gradient is None else gradient + flat
        total = total + loss.detach()
    assert gradient is not None
    return network.mean(total), network.mean(gradient / network.loss_scale)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Lay tensors end to end: one vector, of float32 at least."""
    return torch.cat([_full(tensor).reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into the shapes and dtypes of `like`."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor).to(tensor.dtype) for piece, tensor in zip(pieces, like, strict=True)]


def _full(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
