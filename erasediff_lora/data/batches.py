"""Noised batches. Everything random in a step comes from (seed, step) alone, so that a resumed run repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from erasediff_lora.data.buckets import choose_alike, cut, of_shape
from erasediff_lora.data.extras import Drawn, Extra
from erasediff_lora.data.micro_batches import MicroBatches
from erasediff_lora.data.noising import denoising_target, draw_timesteps, min_snr_weights
from erasediff_lora.data.sets import EncodedSet
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.objectives.base import Batch, Shown
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import EXTRAS

HIGH_NOISE = 0.6
"""Share of the schedule beyond which a timestep has high noise."""


@dataclass(frozen=True)
class Setting:
    """What both samplers go by.

    Attributes:
        noise_scheduler: A diffusers scheduler.
        batch_size: Of the joint batch of all processes.
        micro_batches: How a process cuts its share.
        seed: Of all that is random.
        device: Where batches go.
        dtype: Of x_t and of embeddings.
        rank: Which of the processes this is.
        world: How many there are.
        density: How timesteps are drawn.
        shift: How far they are moved towards noise.
    """

    noise_scheduler: Any
    batch_size: int
    micro_batches: MicroBatches
    seed: int
    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1
    density: str = "uniform"
    shift: float = 1.0

    def timesteps(self, generator: torch.Generator) -> Tensor:
        """Of a joint batch."""
        return draw_timesteps(self.batch_size, self.train_timesteps, generator, self.density, self.shift)

    @property
    def train_timesteps(self) -> int:
        """T."""
        return int(self.noise_scheduler.config.num_train_timesteps)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and its denoising target, both (B, C, h, w)."""
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        return noisy, denoising_target(self.noise_scheduler, latents, noise, timesteps)

    def shared(self, joint: Batch) -> list[Batch]:
        """This process's micro-batches of the joint batch."""
        mine = torch.arange(len(joint)).chunk(self.world)[self.rank]
        return [joint[rows].to(self.device) for rows in mine.chunk(self.micro_batches.count)]


@dataclass(frozen=True)
class ForgetSampler:
    """Draws from D_f.

    Attributes:
        data: D_f.
        setting: Sizes, schedule and seed.
        extras: What computes the further fields that the objective needs.
    """

    data: EncodedSet
    setting: Setting
    extras: Sequence[Extra] = ()

    def draw(self, step: int, concepts: Sequence[str] | None = None) -> list[Batch]:
        """The micro-batches of a step.

        Args:
            step: Its number.
            concepts: Which are to be seen, in equal parts; None: the pictures alike, whatever they show.
        """
        setting, data = self.setting, self.data
        count = setting.batch_size
        generator = torch.Generator().manual_seed((setting.seed * 1_000_003 + step) * 2)
        rows, shape = choose_alike(data.shapes, count, generator)
        if concepts is not None:
            self._share_out(rows, shape, concepts, step)
        latents = cut(data.latents[rows], shape)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = setting.timesteps(generator)
        torch.rand(count, generator=generator)  # which retained samples lose their prompt: drawn by both samplers alike
        anchor_draw = torch.rand(count, generator=generator)
        uniform = torch.rand(latents.shape, generator=generator)
        drawn = Drawn(rows, shape, latents, noise, timesteps, anchor_draw, uniform, generator, setting.dtype)
        extras = {name: field for extra in self.extras for name, field in extra(drawn).items()}
        noisy, target = setting.noised(latents, noise, timesteps)
        joint = Batch(
            noisy=noisy.to(setting.dtype),
            timesteps=timesteps,
            prompts=data.embeddings[data.captions[rows]].to(setting.dtype),
            target=target,
            extras=extras,
            rows=rows,
            condition_draw=(torch.randperm(count, generator=generator) + torch.rand(count, generator=generator))
            / count,
            shown=self._shown(rows),
        )
        return setting.shared(joint)

    def _share_out(self, rows: Tensor, shape: Tensor, concepts: Sequence[str], step: int) -> None:
        """Give every concept its part of the rows, in place; who gets one more changes from step to step."""
        data = self.data
        chance = torch.Generator().manual_seed(self.setting.seed * 1_000_003 + step)
        alike = of_shape(data.shapes, shape)
        for place in range(len(rows)):
            concept = data.names.index(concepts[(place + step) % len(concepts)])
            own = (alike & (data.concepts == concept)).nonzero().flatten()
            if len(own):
                rows[place] = own[torch.randint(len(own), (), generator=chance)]

    def _shown(self, rows: Tensor) -> Shown:
        seen, places, counts = self.data.concepts[rows].unique(return_inverse=True, return_counts=True)
        names = tuple(self.data.names[number] for number in seen.tolist())
        return Shown(places, names, tuple(count / len(rows) for count in counts.tolist()))


@dataclass(frozen=True)
class RetainSampler:
    """Draws from D_r.

    Attributes:
        data: D_r.
        setting: Sizes, schedule and seed.
        forgotten: D_f, whose pictures contrasted samples show.
        empty_prompt_share: Share of the samples without a prompt, about.
        min_snr_gamma: γ of the losses' weights; None: all weigh alike.
        focus: Share of the batch that is drawn by weights.
        contrast: Share of the batch that shows forgotten pictures under retain prompts, or under none.
        high_noise: Share of the samples whose timestep is moved up into the noisy end, about.
    """

    data: EncodedSet
    setting: Setting
    forgotten: EncodedSet
    empty_prompt_share: float
    min_snr_gamma: float | None = None
    focus: float = 0.0
    contrast: float = 0.0
    high_noise: float = 0.0

    def draw(self, step: int, drift_weights: Tensor | None = None) -> list[Batch]:
        """The micro-batches of a step.

        Args:
            step: Its number.
            drift_weights: How often each picture is drawn in the share that has a focus, (N,).
        """
        setting, data = self.setting, self.data
        count = setting.batch_size
        generator = torch.Generator().manual_seed((setting.seed * 1_000_003 + step) * 2 + 1)
        further = torch.Generator().manual_seed(setting.seed * 1_000_003 + step)  # leaves the other draws as they are
        rows, shape = choose_alike(data.shapes, count, generator)
        self._focus(rows, shape, drift_weights, further)
        latents = cut(data.latents[rows], shape)
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = self._timesteps(generator, further)
        is_empty = torch.rand(count, generator=generator) < self.empty_prompt_share
        contrasted = self._contrast(latents, is_empty, shape, further) if self.contrast else None
        captions = data.captions[rows].masked_fill(is_empty, 0)
        noisy, target = setting.noised(latents, noise, timesteps)
        gamma = self.min_snr_gamma
        joint = Batch(
            noisy=noisy.to(setting.dtype),
            timesteps=timesteps,
            prompts=data.embeddings[captions].to(setting.dtype),
            target=target,
            weights=min_snr_weights(setting.noise_scheduler, timesteps, gamma) if gamma else None,
            rows=rows,
            contrasted=contrasted,
        )
        return setting.shared(joint)

    def _focus(self, rows: Tensor, shape: Tensor, drift_weights: Tensor | None, generator: torch.Generator) -> None:
        """Draw the first rows by their weights, in place."""
        if drift_weights is not None and (focused := round(self.focus * len(rows))):
            alike = drift_weights * of_shape(self.data.shapes, shape)
            rows[:focused] = torch.multinomial(alike, focused, replacement=True, generator=generator)

    def _timesteps(self, generator: torch.Generator, further: torch.Generator) -> Tensor:
        count, total = self.setting.batch_size, self.setting.train_timesteps
        timesteps = self.setting.timesteps(generator)
        if not self.high_noise:
            return timesteps
        raised = torch.rand(count, generator=further) < self.high_noise
        return torch.where(raised, (total * HIGH_NOISE + timesteps * (1 - HIGH_NOISE)).long(), timesteps)

    def _contrast(self, latents: Tensor, is_empty: Tensor, shape: Tensor, generator: torch.Generator) -> Tensor:
        """Put forgotten pictures in the place of some, half of them under no prompt: both in place; which, (B,)."""
        contrasted = torch.zeros(len(latents), dtype=torch.bool)
        alike = of_shape(self.forgotten.shapes, shape).nonzero().flatten()
        if len(alike):
            swapped = torch.randperm(len(latents), generator=generator)[: round(self.contrast * len(latents))]
            others = alike[torch.randint(len(alike), swapped.shape, generator=generator)]
            latents[swapped] = cut(self.forgotten.latents[others], shape)
            contrasted[swapped] = True
            is_empty[swapped[: len(swapped) // 2]] = True
        return contrasted


class Sampler(Protocol):
    """What a step and an objective's preparation draw from."""

    @property
    def plain(self) -> Sampler:
        """A sampler of both sets as they are."""
        ...

    def draw(
        self, step: int, drift_weights: Tensor | None = None, concepts: Sequence[str] | None = None
    ) -> tuple[list[Batch], list[Batch]]:
        """The forget and the retain micro-batches of a step."""
        ...


@dataclass(frozen=True)
class BatchSampler:
    """Draws the micro-batches of a step from both sets.

    The joint batch of all processes is drawn on each, and every process takes its own share: one process and
    several see the same data.
    """

    forget: ForgetSampler
    retain: RetainSampler

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        forget: EncodedSet,
        retain: EncodedSet,
        denoiser: Denoiser,
        *,
        rank: int = 0,
        world: int = 1,
        micro_batches: MicroBatches | None = None,
    ) -> BatchSampler:
        """The sampler that a recipe asks for, of one of `world` processes.

        Raises:
            UserError: If the objective wants retain pictures in the place of the forgotten ones, and there are none.
        """
        training = recipe.training
        setting = Setting(
            denoiser.noise_scheduler,
            training.batch_size,
            micro_batches or MicroBatches.of(training, world),
            training.seed,
            denoiser.device,
            denoiser.dtype,
            rank,
            world,
            training.timesteps,
            training.timestep_shift,
        )
        extras = [EXTRAS[name](forget, retain, denoiser.noise_scheduler) for name in recipe.objective.needs]
        return cls(
            ForgetSampler(forget, setting, extras),
            RetainSampler(
                retain,
                setting,
                forget,
                recipe.retain.empty_prompt_share,
                training.min_snr_gamma,
                recipe.retain.focus,
                recipe.retain.contrast,
                recipe.retain.high_noise,
            ),
        )

    @property
    def plain(self) -> BatchSampler:
        """The sampler of both sets as they are: no forgotten pictures among the retained, no more noise."""
        return replace(self, retain=replace(self.retain, contrast=0.0, high_noise=0.0))

    def draw(
        self, step: int, drift_weights: Tensor | None = None, concepts: Sequence[str] | None = None
    ) -> tuple[list[Batch], list[Batch]]:
        """The forget and the retain micro-batches of a step.

        Args:
            step: Its number.
            drift_weights: How often each retain picture is drawn in the share that has a focus, (N,).
            concepts: Which the forget batch shows, in equal parts; None: its pictures alike.
        """
        return self.forget.draw(step, concepts), self.retain.draw(step, drift_weights)
