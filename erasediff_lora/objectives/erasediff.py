"""EraseDiff: retain, subject to the parameters being a minimiser of the forget loss.

Wu, Le, Hayat, Harandi: Erasing Undesirable Influence in Diffusion Models.

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

import torch
from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import (
    Batch,
    Direction,
    Objective,
    ObjectiveSettings,
    assign,
    flatten,
    floats,
    loss_and_gradient,
    required,
    unflatten,
)


class EraseDiffSettings(ObjectiveSettings):
    """Options of the objective."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        # Uniform targets and the barrier on the gradient norm: the paper's first form.
        "paper": {"target": "uniform", "barrier": "grad_norm", "eta": 1.0, "gradient": "detached", "inner_steps": 2},
    }
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
        """One EraseDiff direction: ∇L_r, the inner problem from φ⁰ = θ, ∇ĝ, λ, δ."""
        settings = self.settings
        retain_loss, retain_gradient = loss_and_gradient(self.network, retain, self.loss)
        forget_loss, forget_gradient = loss_and_gradient(self.network, forget, self.loss)

        gap: Tensor | None = None
        constraint_gradient = forget_gradient
        if not settings.inner_steps_are_inert:
            inner_loss, inner_gradient = self._solve_inner_problem(forget, forget_gradient)
            gap = forget_loss - inner_loss
            if inner_gradient is not None:
                constraint_gradient = forget_gradient - inner_gradient

        squared_norm = constraint_gradient.square().sum()
        inner_product = retain_gradient @ constraint_gradient
        if settings.barrier == "fixed":
            multiplier = torch.full_like(squared_norm, settings.multiplier)
        else:
            barrier = settings.eta * (squared_norm if settings.barrier == "grad_norm" else required(gap).clamp_min(0))
            multiplier = constraint_multiplier(barrier, inner_product, squared_norm)
        direction = retain_gradient + multiplier * constraint_gradient

        retain_norm, constraint_norm = retain_gradient.norm(), squared_norm.sqrt()
        metrics = {
            "retain_loss": retain_loss,
            "forget_loss": forget_loss,
            "gap": gap,
            "lambda": multiplier,
            "retain_gradient_norm": retain_norm,
            "constraint_gradient_norm": constraint_norm,
            "gradient_cosine": inner_product / (retain_norm * constraint_norm).clamp_min(1e-30),
            "direction_norm": direction.norm(),
        }
        return Direction(direction, floats(metrics))

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
            first_gradient: ∇L_f(θ), the gradient of the first inner step.

        Returns:
            L_f(φ^K) and, for first_order, ∇L_f(φ^K).
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
                return loss_and_gradient(self.network, forget, self.loss)
            with torch.no_grad():
                loss = torch.stack([self.loss(batch) for batch in forget]).mean()
            return self.network.mean(loss), None
        finally:
            assign(parameters, theta)


def constraint_multiplier(barrier: Tensor, inner_product: Tensor, squared_norm: Tensor) -> Tensor:
    """λ = max(0, (a − ⟨∇L_r, ∇ĝ⟩) / ‖∇ĝ‖²).

    It makes δ = ∇L_r + λ∇ĝ the minimiser of ½‖∇L_r − δ‖² subject to ⟨∇ĝ, δ⟩ ≥ a. Where ∇ĝ vanishes there is
    nothing to ascend: λ is 0.
    """
    smallest = torch.finfo(squared_norm.dtype).tiny
    multiplier = ((barrier - inner_product) / squared_norm.clamp_min(smallest)).clamp_min(0)
    return torch.where(squared_norm <= smallest, torch.zeros_like(multiplier), multiplier)
