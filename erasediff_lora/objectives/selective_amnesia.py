"""Selective Amnesia: relearn the concept as something else, and hold on to the weights that the rest needs.

Heng and Soh: Selective Amnesia: A Continual Learning Approach to Forgetting in Deep Generative Models (2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from erasediff_lora.errors import Problem
from erasediff_lora.objectives.base import (
    Batch,
    Direction,
    Draw,
    ObjectiveSettings,
    WeightedSum,
    flatten,
    mean_squared_error,
)
from erasediff_lora.recipe.checks import Sections, no_whole_weights


class SelectiveAmnesiaSettings(ObjectiveSettings):
    """Options of the objective; sources: clear-nus/selective-amnesia, ddpm/configs and sd/configs."""

    falls: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "sa_ddpm": {"surrogate_pictures": "noise", "penalty": 10.0, "reduction": "sum"},
        "sa_sd": {"surrogate_pictures": "anchor", "penalty": 50.0, "reduction": "mean"},
    }
    repeats: ClassVar[tuple[str, ...]] = ("fisher_samples",)

    name: Literal["selective_amnesia"] = Field("selective_amnesia", description="the method")
    preset: Literal["default", "sa_ddpm", "sa_sd"] = Field("default", description="starting point of the fields below")
    surrogate_pictures: Literal["noise", "anchor"] = Field(
        "noise", description="what the concept becomes: uniform noise, or the retain set's pictures of its anchor"
    )
    retain_weight: float = Field(1.0, ge=0, description="gamma, weight of the generative replay, the retain loss")
    penalty: float = Field(10.0, ge=0, description="lambda, weight of the Fisher penalty, in the authors' units")
    reduction: Literal["mean", "sum"] = Field(
        "sum", description="of the authors' losses over a picture's elements: what lambda weighs"
    )
    fisher_samples: int = Field(128, ge=1, description="retain samples that the Fisher information is taken from")

    @property
    def anchors(self) -> Literal["named", "any"] | None:
        return "named" if self.surrogate_pictures == "anchor" else None

    @property
    def needs(self) -> tuple[str, ...]:
        return ("noise_surrogate",) if self.surrogate_pictures == "noise" else ("anchors", "anchor_surrogate")

    def check(self, sections: Sections) -> list[Problem]:
        return no_whole_weights(sections, "selective_amnesia differentiates by them")


class SelectiveAmnesia(WeightedSum):
    """∇L_noise(surrogate, c) + γ ∇L_r + λ ∇ Σ F ΔW², F the diagonal Fisher information of the base on retain data.

    For F the authors sum a sample's gradients over all T timesteps and square the sum; here F is the mean square of
    single timesteps. At a minimum the gradients of different timesteps are independent with mean 0, so the square of
    their sum is T times the mean square: λ counts T times. Their DDPM code also sums losses over the D elements of a
    picture (`reduction: sum`), F's among them, where losses here are means: there λ counts T · D times. Their SD code
    averages throughout (`reduction: mean`). Replay is from the recipe's retain set, drawn by the base or given.
    """

    Settings = SelectiveAmnesiaSettings
    curves = WeightedSum.curves | {"fisher_penalty": "Fisher penalty"}

    def prepare(self, draw: Draw) -> Sequence[Tensor]:
        """The diagonal Fisher information of every adapted weight of the base."""
        weights = list(self.network.base_weights)
        fisher = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        trained = [weight.requires_grad for weight in weights]  # all or none: they may be the parameters themselves
        for weight in weights:
            weight.requires_grad_(True)
        try:
            for number, sample in zip(range(self.settings.fisher_samples), _samples(draw), strict=False):
                prediction = self.network.predict_base(sample.noisy, sample.timesteps, sample.prompts)
                gradients = torch.autograd.grad(mean_squared_error(prediction, sample.target), weights)
                for total, gradient in zip(fisher, gradients, strict=True):
                    total += (gradient.float().square() - total) / (number + 1)
        finally:
            for weight, flag in zip(weights, trained, strict=True):
                weight.requires_grad_(flag)
        return [self.network.mean(total) for total in fisher]

    def forget_target(self, batch: Batch) -> Tensor | None:
        return batch.extras["surrogate_target"]

    def direction(self, forget: Sequence[Batch], retain: Sequence[Batch]) -> Direction:
        corrupted = [replace(batch, noisy=batch.extras["surrogate_noisy"]) for batch in forget]
        return super().direction(corrupted, retain)

    def adjusted(self, vector: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        penalty = self.fisher_penalty(batches[0].noisy[0].numel())
        gradient = flatten(torch.autograd.grad(penalty, list(self.network.parameters)))
        return vector + gradient.to(vector), {"fisher_penalty": penalty}

    def fisher_penalty(self, elements: int) -> Tensor:
        """λ T D Σ F ΔW², a scalar; D is `elements` where the authors' losses are sums, else 1."""
        changes = self.network.weight_changes()
        terms = [
            (fisher * change.float().square()).sum() for fisher, change in zip(self.prepared, changes, strict=True)
        ]
        times = self.network.train_timesteps * (elements if self.settings.reduction == "sum" else 1)
        return self.settings.penalty * times * torch.stack(terms).sum()


def _samples(draw: Draw) -> Iterator[Batch]:
    """Retain samples one by one, without end."""
    step = 0
    while True:
        for batch in draw(step)[1]:
            yield from (batch[index : index + 1] for index in range(len(batch)))
        step += 1
