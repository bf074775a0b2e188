"""EraseDiff: retain, subject to the parameters being a minimiser of the forget loss.

Wu, Le, Hayat, Harandi: Erasing Undesirable Influence in Diffusion Models.

The paper has one constraint, on the mean over all that is to be forgotten. Of several concepts a mean can fall while
one of them stands, so here each has a constraint of its own, and a multiplier λ_c: see `multipliers`. For a single
concept the two are the same.

Where the authors' public code (JingWu321/EraseDiff) and the paper differ, this is the paper. The code takes
λ = max(0, η − cos(∇L_r, ∇ĝ)), or a fixed one, in the place of the formula, and takes the inner steps with the outer
Adam, whose moments they change, on batches of their own, over whole epochs. Its DDPM part sums the retain loss over
elements and averages the forget loss, pulls a whole batch to one class drawn at random, pairs the timesteps t and
T − 1 − t, and keeps an exponential mean of the weights; here losses are means, and anchors and timesteps are drawn for
every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from erasediff_lora.machine.devices import wide
from erasediff_lora.objectives import multipliers, one_pass
from erasediff_lora.objectives.base import (
    Batch,
    Direction,
    Objective,
    ObjectiveSettings,
    assign,
    flatten,
    floats,
    loss_and_gradient,
    losses_and_gradients,
    losses_by_concept,
    required,
    required_concepts,
    unflatten,
)


class EraseDiffSettings(ObjectiveSettings):
    """Options of the objective."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        # Uniform targets and the barrier on the gradient norm: the paper's first form.
        "paper": {
            **{"target": "uniform", "barrier": "grad_norm", "eta": 1.0, "gradient": "detached", "inner_steps": 2},
            "constraints": "joint",
        },
    }
    gradients_apart: ClassVar[bool] = True
    name: Literal["erasediff"] = Field("erasediff", description="the method")
    preset: Literal["default", "paper"] = Field("default", description="starting point of the fields below")
    target: Literal["anchor", "random_anchor", "uniform", "uncond"] = Field(
        "random_anchor", description="what the prediction on forgotten data is pulled to"
    )
    picture_guidance: float = Field(
        0.0,
        ge=0,
        description="r: the target also leads from the forgotten picture to its anchor, drawn from the same seed",
    )
    target_from: Literal["base", "current"] = Field(
        "base", description="network that predicts the target: adapter off, or on (public code)"
    )
    retain_target: Literal["data", "base"] = Field(
        "data", description="what the prediction on retained data is held to: the noise itself (paper), or the base's"
    )
    constraints: Literal["each", "joint"] = Field(
        "each", description="a constraint and a multiplier for each concept, or one on their mean (paper)"
    )
    inner_steps: int = Field(1, ge=1, description="K, steps of the inner problem")
    inner_learning_rate: float = Field(0.1, gt=0, description="zeta, of the inner SGD")
    barrier: Literal["grad_norm", "gap", "fixed"] = Field(
        "grad_norm", description="a: eta * |grad g|^2, eta * max(g, 0), or a fixed lambda"
    )
    eta: float = Field(0.3, gt=0, description="scale of the barrier")
    multiplier: float = Field(1.0, ge=0, description="lambda of `barrier: fixed`")
    gradient: Literal["detached", "first_order"] = Field(
        "detached", description="grad g: grad L_f(theta), or minus grad L_f(phi^K) as well"
    )

    @property
    def anchors(self) -> Literal["named", "any"] | None:
        return {"anchor": "named", "random_anchor": "any"}.get(self.target)  # type: ignore[return-value]

    @property
    def wants_anchors(self) -> tuple[str, str]:
        return f"objective.target: {self.target}", "Name an anchor, or set objective.target: random_anchor."

    @property
    def counterparts(self) -> bool:
        return self.picture_guidance > 0 and self.anchors is not None

    @property
    def needs(self) -> tuple[str, ...]:
        condition = {"uniform": "uniform", "uncond": "empty"}.get(self.target, "anchors")
        return (condition, "shift") if self.counterparts else (condition,)

    @property
    def inner_steps_are_inert(self) -> bool:
        """Whether φ^K enters the update nowhere: it is a constant, and no barrier reads ĝ."""
        return self.gradient == "detached" and self.barrier != "gap"


class EraseDiff(Objective):
    """Update direction δ = ∇L_r + λ∇ĝ, with ĝ(θ) = L_f(θ) − L_f(φ^K)."""

    Settings = EraseDiffSettings
    curves = Objective.curves | {
        "gap": "violation ĝ",
        "lambda": "multiplier λ",
        "gradient_cosine": "cosine of the two gradients",
    }

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.settings.inner_steps_are_inert:
            notes.append(
                f"The {self.settings.inner_steps} inner step(s) are skipped: with objective.gradient: detached and "
                f"objective.barrier: {self.settings.barrier} they cannot change the update."
            )
        if self.settings.picture_guidance and not self.settings.counterparts:
            notes.append("objective.picture_guidance is not used: it leads to an anchor, and the target has none.")
        return notes

    @property
    def retain_target(self) -> Literal["data", "base"] | None:
        chosen: Literal["data", "base"] = self.settings.retain_target
        return chosen

    def direction(self, forget: Sequence[Batch], retain: Sequence[Batch]) -> Direction:
        """One EraseDiff direction: ∇L_r, the inner problem from φ⁰ = θ, ∇ĝ_c, λ_c, δ."""
        settings = self.settings
        retain_loss, retain_gradient, losses, gradients = one_pass.gradients(
            self.network, retain, forget, self.losses, each=not self._is_joint(forget)
        )
        shares = self._shares(forget, losses)

        gaps: Tensor | None = None
        if not settings.inner_steps_are_inert:
            inner_losses, inner_gradients = self._solve_inner_problem(forget, weighted(shares, gradients))
            gaps = losses - inner_losses
            if inner_gradients is not None:
                gradients = gradients - inner_gradients

        squared_norms = torch.stack([gradient.square().sum() for gradient in gradients])
        inner_products = torch.stack([retain_gradient @ gradient for gradient in gradients])
        feasible = True
        if settings.barrier == "fixed":
            factors = torch.full_like(squared_norms, settings.multiplier)
        else:
            barriers = settings.eta * (
                squared_norms if settings.barrier == "grad_norm" else required(gaps).clamp_min(0)
            )
            factors, feasible = solve(gradients, squared_norms, inner_products, barriers)
        direction = retain_gradient
        for multiplier, gradient in zip(factors, gradients, strict=True):
            direction = direction + multiplier * gradient

        joint = weighted(shares, gradients)
        retain_norm, joint_norm = retain_gradient.norm(), joint.norm()
        metrics = {
            "retain_loss": retain_loss,
            "forget_loss": shares @ losses,
            "gap": None if gaps is None else shares @ gaps,
            "lambda": factors.mean(),
            "retain_gradient_norm": retain_norm,
            "constraint_gradient_norm": joint_norm,
            "gradient_cosine": (retain_gradient @ joint) / (retain_norm * joint_norm).clamp_min(1e-30),
            "direction_norm": direction.norm(),
        }
        return Direction(direction, floats(metrics | self._by_concept(forget, losses, factors, feasible)))

    def _is_joint(self, forget: Sequence[Batch]) -> bool:
        shown = forget[0].shown
        return self.settings.constraints == "joint" or shown is None or len(shown.names) == 1

    def _shares(self, forget: Sequence[Batch], losses: Tensor) -> Tensor:
        """Of each constraint in the batch, (C,)."""
        return losses.new_tensor([1.0] if self._is_joint(forget) else required_concepts(forget).shares)

    def _forget_losses_and_gradients(self, forget: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """L_f and ∇L_f of each constraint, (C,) and (C, P)."""
        if self._is_joint(forget):
            loss, gradient = loss_and_gradient(self.network, forget, self.loss)
            return loss[None], gradient[None]
        return losses_and_gradients(self.network, forget, self.losses)

    def _by_concept(
        self, forget: Sequence[Batch], losses: Tensor, factors: Tensor, feasible: bool
    ) -> dict[str, Tensor | None]:
        """What the log says of each concept, where each has its own constraint."""
        if self._is_joint(forget):
            return {}
        metrics: dict[str, Tensor | None] = {"constraints_opposed": losses.new_tensor(float(not feasible))}
        for name, loss, multiplier in zip(required_concepts(forget).names, losses, factors, strict=True):
            metrics |= {f"forget_loss/{name}": loss, f"lambda/{name}": multiplier}
        return metrics

    def forget_target(self, batch: Batch) -> Tensor | None:
        """On a noised picture of the concept, what the base makes of the anchor is in part the concept.

        The picture shows it. With picture guidance r the target is moved by r of the way to the picture's counterpart:
        see `data.noising.counterpart_shift`.
        """
        if self.settings.target == "uniform":
            return batch.extras["uniform"]
        condition = batch.extras["empty" if self.settings.target == "uncond" else "anchors"]
        predict = self.network.predict_base if self.settings.target_from == "base" else self.network.predict
        target = predict(batch.noisy, batch.timesteps, condition)
        if self.settings.counterparts:
            target = target + self.settings.picture_guidance * batch.extras["shift"].to(target)
        return target

    def _solve_inner_problem(self, forget: Sequence[Batch], first_gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """φ^{k+1} = φ^k − ζ∇L_f(φ^k) from φ⁰ = θ; θ itself is put back before returning.

        Args:
            forget: The very micro-batches of L_f(θ), with timesteps, noise and targets.
            first_gradient: ∇L_f(θ) of the whole batch, (P,), the gradient of the first inner step.

        Returns:
            L_f(φ^K) of each constraint, (C,), and, for first_order, ∇L_f(φ^K), (C, P).
        """
        parameters = self.network.parameters
        theta = [parameter.detach().clone() for parameter in parameters]
        phi, gradient = flatten(theta), first_gradient
        try:
            for step in range(self.settings.inner_steps):
                if step > 0:
                    _, gradient = loss_and_gradient(self.network, forget, self.loss)
                phi = phi - self.settings.inner_learning_rate * gradient
                assign(parameters, unflatten(phi, parameters))
            if self.settings.gradient == "first_order":
                return self._forget_losses_and_gradients(forget)
            with torch.no_grad():
                if not self._is_joint(forget):
                    return losses_by_concept(self.network, forget, self.losses), None
                loss = torch.stack([self.loss(batch) for batch in forget]).mean()
            return self.network.mean(loss)[None], None
        finally:
            assign(parameters, theta)


def weighted(shares: Tensor, gradients: Tensor) -> Tensor:
    """Σ s_c g_c, (P,)."""
    return gradients[0] if len(shares) == 1 else shares @ gradients


def solve(gradients: Tensor, squared_norms: Tensor, inner_products: Tensor, barriers: Tensor) -> tuple[Tensor, bool]:
    """λ of every constraint, (C,), and whether one direction meets them all: the paper's formula, or the programme.

    Args:
        gradients: ∇ĝ_c, (C, P).
        squared_norms: ‖∇ĝ_c‖², (C,).
        inner_products: ⟨∇L_r, ∇ĝ_c⟩, (C,).
        barriers: a_c, (C,).
    """
    if len(gradients) == 1:
        return constraint_multiplier(barriers, inner_products, squared_norms), True
    numbers = torch.stack([squared_norms, inner_products, barriers]).cpu().double()
    if not bool(numbers.isfinite().all()):  # the loop looks at the direction, and says which sample made it so
        return torch.full_like(squared_norms, torch.nan), True
    found = multipliers.solve(gram(gradients), numbers[1].numpy(), numbers[2].numpy())
    return torch.from_numpy(found.values).to(squared_norms), found.feasible


def gram(vectors: Tensor) -> np.ndarray:
    """⟨g_i, g_j⟩, (C, C) float64; summed up in pieces, so that it takes little memory."""
    pieces = vectors.split(2**18, dim=1)
    return np.sum([(wide(piece) @ wide(piece).T).cpu().numpy() for piece in pieces], axis=0)


def constraint_multiplier(barrier: Tensor, inner_product: Tensor, squared_norm: Tensor) -> Tensor:
    """λ = max(0, (a − ⟨∇L_r, ∇ĝ⟩) / ‖∇ĝ‖²).

    It makes δ = ∇L_r + λ∇ĝ the minimiser of ½‖∇L_r − δ‖² subject to ⟨∇ĝ, δ⟩ ≥ a. Where ∇ĝ vanishes there is
    nothing to ascend: λ is 0.
    """
    smallest = torch.finfo(squared_norm.dtype).tiny
    multiplier = ((barrier - inner_product) / squared_norm.clamp_min(smallest)).clamp_min(0)
    return torch.where(squared_norm <= smallest, torch.zeros_like(multiplier), multiplier)
