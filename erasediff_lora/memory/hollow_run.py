"""A run without weights: its steps can be taken on the meta device, or timed with made-up ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erasediff_lora.data.batches import BatchSampler
from erasediff_lora.data.micro_batches import MicroBatches
from erasediff_lora.data.sets import EncodedSet
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.objectives import Batch
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.optimizers import create_schedule
from erasediff_lora.training.setup import Run, adapt, create_objective


@dataclass(frozen=True)
class Repeated:
    """Batches that were drawn beforehand, as random choices have values, and nothing has on the meta device."""

    batches: tuple[list[Batch], list[Batch]]

    @classmethod
    def of(cls, recipe: Recipe, denoiser: Denoiser) -> Repeated:
        """What the run's own sampler draws, of sets of one picture; on the CPU."""
        denoiser = copy.copy(denoiser)
        denoiser.device = torch.device("cpu")
        latents = torch.zeros(1, *latent_shape(recipe, denoiser))
        first = torch.zeros(1, dtype=torch.long)
        embeddings = denoiser.hollow_prompts(1)
        shapes = torch.tensor([latents.shape[2:]])
        hollow = EncodedSet(latents, shapes, embeddings, first, first[None], [""], latents, first, [""])
        return cls(BatchSampler.of(recipe, hollow, hollow, denoiser).draw(0))

    def to(self, device: torch.device) -> Repeated:
        """The batches on a device."""
        forget, retain = ([batch.to(device) for batch in batches] for batches in self.batches)
        return Repeated((forget, retain))

    @property
    def plain(self) -> Repeated:
        """The same."""
        return self

    def draw(
        self, step: int, drift_weights: Tensor | None = None, concepts: Sequence[str] | None = None
    ) -> tuple[list[Batch], list[Batch]]:
        """The same batches at every step."""
        return self.batches


def hollow_run(recipe: Recipe, denoiser: Denoiser, sampler: Repeated) -> Run:
    """A run on a network without weights, with an optimizer that has no state and no arithmetic of its own.

    What bitsandbytes would hold is added by formula.

    Args:
        recipe: Its number of micro-batches is given.
        denoiser: On the meta device.
        sampler: On the meta device.
    """
    trainable = adapt(recipe, denoiser)
    optimizer = torch.optim.SGD(trainable.parameters, lr=1.0)
    schedule = create_schedule(recipe.training, optimizer)
    objective = create_objective(recipe, denoiser, trainable)
    return Run(recipe, denoiser, trainable, sampler, objective, optimizer, schedule, MicroBatches.of(recipe.training))


def latent_shape(recipe: Recipe, denoiser: Denoiser) -> tuple[int, int, int]:
    """Of a picture at the size that the recipe draws."""
    return denoiser.latent_shape(recipe.sampling.resolution or denoiser.resolution)
