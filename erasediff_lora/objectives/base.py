"""What an objective is given, and what it must return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from erasediff_lora.machine.devices import wide
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.objectives.loss_scaling import unscaled_gradients
from erasediff_lora.recipe.tables import ObjectiveSettings as ObjectiveSettings  # methods take it from here

Predict = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t (B, C, H, W), t (B,), what the network is told of B prompts) -> prediction (B, C, H, W)."""


@dataclass(frozen=True)
class Shown:
    """Which forgotten concepts the samples show.

    Attributes:
        rows: (B,) indices of `names`, on the CPU.
        names: The concepts of the joint batch of all processes.
        shares: What part of the joint batch each of them has.
    """

    rows: Tensor
    names: tuple[str, ...]
    shares: tuple[float, ...]

    def __getitem__(self, rows: slice | Tensor) -> Shown:
        """Of these samples alone."""
        return replace(self, rows=self.rows[rows])


@dataclass(frozen=True)
class Batch:
    """Noised samples of one set.

    Attributes:
        noisy: x_t, (B, C, H, W).
        timesteps: t, (B,) int64.
        prompts: What the network is told of the B captions.
        target: True denoising target of the scheduler's prediction type; once aimed, what the prediction is pulled to.
            (B, C, H, W).
        weights: Per-sample loss weights, (B,).
        extras: What the objective's settings ask for by `needs` (forget set only), each (B, …) or of B prompts.
        rows: Which samples of the set they are, (B,) int64, on the CPU; to name them.
        condition_draw: What decides who is trained under an adversarial condition, (B,) in [0, 1), spread evenly
            over the joint batch of all processes; on the CPU (forget set only).
        contrasted: Which samples show forget pictures, (B,) bool, on the CPU (retain set only, on request).
        shown: Which concepts the samples show (forget set only).
    """

    noisy: Tensor
    timesteps: Tensor
    prompts: Condition
    target: Tensor
    weights: Tensor | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    rows: Tensor | None = None
    condition_draw: Tensor | None = None
    contrasted: Tensor | None = None
    shown: Shown | None = None

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """The samples of these rows."""
        parts = {name: value for name, value in vars(self).items() if isinstance(value, Tensor | Condition)}
        tensors: dict[str, Any] = {name: value[rows] for name, value in parts.items()}
        extras = {name: value[rows] for name, value in self.extras.items()}
        return replace(self, **tensors, extras=extras, shown=None if self.shown is None else self.shown[rows])

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; what is read on the CPU stays there."""
        moved = {name: getattr(self, name).to(device) for name in ("noisy", "timesteps", "prompts", "target")}
        weights = None if self.weights is None else self.weights.to(device)
        return replace(self, **moved, weights=weights, extras={n: v.to(device) for n, v in self.extras.items()})


@dataclass(frozen=True)
class Direction:
    """The update direction as one flat vector, and the quantities to log.

    The optimizer descends along it: it takes the place of the gradient. `metrics` holds its norm as `direction_norm`.
    """

    vector: Tensor
    metrics: dict[str, float | None] = field(default_factory=dict)


Forward = Callable[[], Tensor]
"""Runs the network on a batch -> the loss of each sample, (B,)."""

GroupGradients = Callable[[Forward, Tensor, int, float], tuple[Tensor, Tensor]]
"""A forward pass, the group of each sample (B,) on the CPU, the number of groups, a loss scale -> the losses of the
samples (B,), and of each group the flat gradient of its samples' sum in θ, (G, P), unscaled."""


@dataclass(frozen=True)
class Network:
    """The network as objectives see it.

    Attributes:
        parameters: The adapter's trainable tensors, θ.
        predict: ε_θ, with the adapter on.
        predict_base: ε_0, the same network with the adapter off.
        mean: Averages a tensor over all processes (the identity for one).
        loss_scale: Multiplies losses before their backward pass, or less where that overflows; gradients come back
            unscaled.
        base_weights: W of every adapted module, frozen.
        weight_changes: ΔW of every adapted module, differentiable in θ; in the order of `base_weights`.
        train_timesteps: T of the noise schedule.
        is_split: Whether the weights are split among processes: all of them predict, or none does.
        group_gradients: Finds the gradients of groups of samples in one backward pass; None: by a pass for each.
        one_pass: Whether retained and forgotten samples go through the network together, with `group_gradients`.
    """

    parameters: Sequence[Tensor]
    predict: Predict
    predict_base: Predict
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    loss_scale: float = 1.0
    base_weights: Sequence[Tensor] = ()
    weight_changes: Callable[[], Sequence[Tensor]] = list
    train_timesteps: int = 1000
    is_split: bool = False
    group_gradients: GroupGradients | None = None
    one_pass: bool = False


Draw = Callable[[int], tuple[Sequence[Batch], Sequence[Batch]]]
"""The number of a step -> micro-batches of D_f and of D_r."""


class Objective(ABC):
    """A method. One file each, and a line in the registry.

    Args:
        settings: Of its own class, `Settings`.
        network: What it trains.
    """

    Settings: ClassVar[type[ObjectiveSettings]]

    curves: ClassVar[dict[str, str]] = {"retain_loss": "retain loss L_r", "forget_loss": "forget loss L_f"}
    """Metric -> label of those that the report draws by step, from top to bottom."""

    def __init__(self, settings: Any, network: Network) -> None:
        self.settings = settings
        self.network = network
        self.prepared: Sequence[Tensor] = ()
        """What `prepare` returned, here or in an earlier run; set before the first step."""

    @property
    def notes(self) -> list[str]:
        """What a user should know about the chosen options, said once at the start."""
        return []

    @property
    def retain_target(self) -> Literal["data", "base"] | None:
        """What retained samples are aimed at: their true target, or the base's prediction; None: no retain loss."""
        return "data"

    def prepare(self, draw: Draw) -> Sequence[Tensor]:
        """What the method computes once, on the fresh adapter; its time is the method's.

        Args:
            draw: Batches of its own, which no step of the loop sees; they are not aimed.
        """
        return ()

    @abstractmethod
    def forget_target(self, batch: Batch) -> Tensor | None:
        """y_f, what forgotten samples are aimed at, (B, C, H, W); None: no forget loss. Gradients are off."""

    @abstractmethod
    def direction(self, forget: Sequence[Batch], retain: Sequence[Batch]) -> Direction:
        """Return the direction for the current parameters.

        Args:
            forget: Micro-batches of D_f, aimed by `targets.aim`; empty without a forget loss.
            retain: Micro-batches of D_r, aimed likewise; empty without a retain loss.
        """

    def losses(self, batch: Batch) -> Tensor:
        """Squared error of the prediction for each sample's own prompt, (B,)."""
        prediction = self.network.predict(batch.noisy, batch.timesteps, batch.prompts)
        return squared_errors(prediction, batch.target, batch.weights)

    def loss(self, batch: Batch) -> Tensor:
        """Mean of `losses`."""
        return self.losses(batch).mean()


def squared_errors(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over elements of ‖target − prediction‖², (B,), in float32 at least, weighted per sample."""
    errors = (_full(prediction) - _full(target)).pow(2).flatten(1).mean(dim=1)
    return errors if weights is None else errors * weights


def mean_squared_error(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the batch of `squared_errors`."""
    return squared_errors(prediction, target, weights).mean()


def loss_and_gradient(
    network: Network, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean loss over the micro-batches and its flat gradient, averaged over processes."""
    total = torch.zeros((), device=network.parameters[0].device)
    gradient: Tensor | None = None
    for batch in batches:
        loss = loss_of(batch) / len(batches)
        flat = flatten(unscaled_gradients(loss, network.parameters, network.loss_scale))
        gradient = flat if gradient is None else gradient + flat
        total = total + loss.detach()
    assert gradient is not None
    return network.mean(total), network.mean(gradient)


def losses_and_gradients(
    network: Network, batches: Sequence[Batch], losses_of: Callable[[Batch], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean loss over the samples of each concept, (C,), and its flat gradient, (C, P), averaged over processes."""
    shown = required_concepts(batches)
    total, gradients = zip(*(_sums_by_concept(network, batch, losses_of) for batch in batches), strict=True)
    shares = total[0].new_tensor(shown.shares)
    losses = network.mean(torch.stack(total).mean(dim=0)) / shares
    gradient = gradients[0] if len(gradients) == 1 else torch.stack(gradients).mean(dim=0)
    return losses, network.mean(gradient) / shares[:, None]


def losses_by_concept(network: Network, batches: Sequence[Batch], losses_of: Callable[[Batch], Tensor]) -> Tensor:
    """Mean loss over the samples of each shown concept, (C,), averaged over processes."""
    shown = required_concepts(batches)
    total = torch.stack([_by_concept(losses_of(batch), batch) for batch in batches]).mean(dim=0)
    return network.mean(total) / total.new_tensor(shown.shares)


def required_concepts(batches: Sequence[Batch]) -> Shown:
    """Which concepts the joint batch shows."""
    shown = batches[0].shown
    assert shown is not None, "the forget batch says nothing of its concepts"
    return shown


def _by_concept(losses: Tensor, batch: Batch) -> Tensor:
    """Sums over the samples of each concept, over the batch's size, (C,)."""
    shown = required_concepts([batch])
    sums = torch.zeros(len(shown.names), device=losses.device, dtype=losses.dtype)
    return sums.index_add(0, shown.rows.to(losses.device), losses.detach()) / len(batch)


def _sums_by_concept(network: Network, batch: Batch, losses_of: Callable[[Batch], Tensor]) -> tuple[Tensor, Tensor]:
    """`_by_concept` of a micro-batch, and its gradient, (C, P)."""
    shown = required_concepts([batch])
    count = len(shown.names)
    if network.group_gradients is not None:
        losses, gradients = network.group_gradients(lambda: losses_of(batch), shown.rows, count, network.loss_scale)
        return _by_concept(losses, batch), gradients / len(batch)
    theta = flatten([parameter.detach() for parameter in network.parameters])
    sums, gradients = theta.new_zeros(count), theta.new_zeros(count, len(theta))
    for number in range(count):
        chosen = (shown.rows == number).nonzero().flatten()
        if not len(chosen) and not network.is_split:
            continue
        part = batch[chosen] if len(chosen) else batch[:1]  # with split weights every process takes every pass
        loss = losses_of(part).sum() * (len(chosen) > 0) / len(batch)
        gradients[number] = flatten(unscaled_gradients(loss, network.parameters, network.loss_scale))
        sums[number] = loss.detach()
    return sums, gradients


class WeightedSum(Objective):
    """Base of the methods that step along a ∇‖y_f − ε_θ‖² + b ∇L_r: subclasses say what y_f, a and b are."""

    forget_weight: float = 1.0
    """a."""

    @property
    def retain_weight(self) -> float:
        """b; 0 leaves the retain loss out, with its cost."""
        return float(self.settings.retain_weight)

    def retain_weight_for(self, retain: Sequence[Batch]) -> float:
        """B for these batches, in units of a loss that is a mean over elements."""
        return self.retain_weight

    @property
    def retain_target(self) -> Literal["data", "base"] | None:
        return "data" if self.retain_weight else None

    def direction(self, forget: Sequence[Batch], retain: Sequence[Batch]) -> Direction:
        parts: list[Tensor] = []
        metrics: dict[str, Tensor | None] = {"forget_loss": None, "retain_loss": None}
        if forget:
            metrics["forget_loss"], gradient = loss_and_gradient(self.network, forget, self.loss)
            parts.append(self.forget_weight * gradient)
        if retain:
            metrics["retain_loss"], gradient = loss_and_gradient(self.network, retain, self.loss)
            parts.append(self.retain_weight_for(retain) * gradient)
        vector, further = self.adjusted(torch.stack(parts).sum(dim=0), [*forget, *retain])
        return Direction(vector, floats(metrics | further | {"direction_norm": vector.norm()}))

    def adjusted(self, vector: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """What a method makes of the sum before it is stepped along, and metrics of its own."""
        return vector, {}


def required(tensor: Tensor | None) -> Tensor:
    """The tensor, which this objective's settings make sure is there."""
    assert tensor is not None, "the objective lacks what it needs"
    return tensor


def floats(metrics: Mapping[str, Tensor | None]) -> dict[str, float | None]:
    """Scalars as numbers, fetched from the device at once: every wait for it would stall the loop."""
    known = {name: value for name, value in metrics.items() if value is not None}
    numbers = torch.stack([wide(value.detach()) for value in known.values()]).tolist()
    return dict.fromkeys(metrics) | dict(zip(known, numbers, strict=True))


def assign(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into the parameters."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Lay tensors end to end: one vector, of float32 at least."""
    return torch.cat([_full(tensor).reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a vector into the shapes and dtypes of `like`."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor).to(tensor.dtype) for piece, tensor in zip(pieces, like, strict=True)]


def _full(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
