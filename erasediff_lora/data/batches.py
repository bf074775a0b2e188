"""Noised batches. Everything random in a step comes from (seed, step) alone, so that a resumed run repeats it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from erasediff_lora.data.buckets import choose_alike, cut, of_shape
from erasediff_lora.data.sets import EncodedSet
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.objectives import Batch
from erasediff_lora.objectives.base import Predict
from erasediff_lora.recipe import Recipe

FORGET, RETAIN = 0, 1
HIGH_NOISE = 0.6
"""Share of the schedule beyond which a timestep has high noise."""


@dataclass(frozen=True)
class BatchSampler:
    """Draws the micro-batches of a step.

    The joint batch of all processes is drawn on each, and every process takes its own share: one process and
    several see the same data.
    """

    forget: EncodedSet
    retain: EncodedSet
    noise_scheduler: Any
    batch_size: int
    micro_batches: int
    empty_prompt_share: float
    min_snr_gamma: float | None
    seed: int
    device: torch.device
    dtype: torch.dtype
    surrogate: Literal["noise", "anchor"] | None = None
    focus: float = 0.0
    contrast: float = 0.0
    high_noise: float = 0.0
    surrogate_rows: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    rank: int = 0
    world: int = 1

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
    ) -> BatchSampler:
        """The sampler that a recipe asks for, of one of `world` processes.

        Raises:
            UserError: If the objective wants retain pictures in the place of the forgotten ones, and there are none.
        """
        return cls(
            forget,
            retain,
            denoiser.noise_scheduler,
            batch_size=recipe.training.batch_size,
            micro_batches=recipe.training.gradient_accumulation,
            empty_prompt_share=recipe.retain.empty_prompt_share,
            min_snr_gamma=recipe.training.min_snr_gamma,
            seed=recipe.training.seed,
            device=denoiser.device,
            dtype=denoiser.dtype,
            surrogate=recipe.objective.surrogate,
            focus=recipe.retain.focus,
            contrast=recipe.retain.contrast,
            high_noise=recipe.retain.high_noise,
            surrogate_rows=_surrogate_rows(forget, retain) if recipe.objective.surrogate == "anchor" else {},
            rank=rank,
            world=world,
        )

    def draw(self, step: int, drift_weights: Tensor | None = None) -> tuple[list[Batch], list[Batch]]:
        """The forget and the retain micro-batches of a step.

        Args:
            step: Its number.
            drift_weights: How often each retain picture is drawn in the share that has a focus, (N,).
        """
        return self._draw(self.forget, step, FORGET), self._draw(self.retain, step, RETAIN, drift_weights)

    def _draw(self, data: EncodedSet, step: int, kind: int, drift_weights: Tensor | None = None) -> list[Batch]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 2 + kind)
        count = self.batch_size
        chosen, shape = choose_alike(data.shapes, count, generator)
        further = torch.Generator().manual_seed(self.seed * 1_000_003 + step)  # leaves the other draws as they are
        if drift_weights is not None and (focused := round(self.focus * count)):
            drift_weights = drift_weights * of_shape(data.shapes, shape)
            chosen[:focused] = torch.multinomial(drift_weights, focused, replacement=True, generator=further)
        latents = cut(data.latents[chosen], shape)
        noise = torch.randn(latents.shape, generator=generator)
        total = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, total, (count,), generator=generator)
        if kind == RETAIN and self.high_noise:
            raised = torch.rand(count, generator=further) < self.high_noise
            timesteps = torch.where(raised, (total * HIGH_NOISE + timesteps * (1 - HIGH_NOISE)).long(), timesteps)
        captions = data.captions[chosen]
        is_empty = torch.rand(count, generator=generator) < self.empty_prompt_share
        anchor_draw = torch.rand(count, generator=generator)
        uniform = torch.rand(latents.shape, generator=generator)

        contrasted: Tensor | None = None
        if kind == RETAIN and self.contrast:
            contrasted = torch.zeros(count, dtype=torch.bool)
            alike = of_shape(self.forget.shapes, shape).nonzero().flatten()
            if len(alike):
                swapped = torch.randperm(count, generator=further)[: round(self.contrast * count)]
                others = alike[torch.randint(len(alike), swapped.shape, generator=further)]
                latents[swapped] = cut(self.forget.latents[others], shape)
                contrasted[swapped] = True
                is_empty[swapped[: len(swapped) // 2]] = True
        if kind == RETAIN:
            captions = torch.where(is_empty, torch.zeros_like(captions), captions)
        anchors: Tensor | None = None
        if data.anchors.shape[1] > 0:
            columns = (anchor_draw * data.anchors.shape[1]).long()
            anchors = data.anchors[chosen, columns]
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        target = denoising_target(self.noise_scheduler, latents, noise, timesteps)
        surrogate: tuple[Tensor, Tensor] | None = None
        if kind == FORGET and self.surrogate is not None:
            pictures = self._surrogates(anchors, uniform, shape, generator)
            surrogate = (
                self.noise_scheduler.add_noise(pictures, noise, timesteps),
                denoising_target(self.noise_scheduler, pictures, noise, timesteps),
            )
        shift: Tensor | None = None
        if data.counterparts is not None:
            counterparts = cut(data.counterparts[chosen], shape)
            shift = counterpart_shift(self.noise_scheduler, latents, counterparts, timesteps)
        condition_draw = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        weights = self._min_snr_weights(timesteps) if kind == RETAIN and self.min_snr_gamma else None

        def batch(rows: Tensor) -> Batch:
            def embed(indices: Tensor) -> Tensor:
                return data.embeddings[indices].to(self.device, self.dtype)

            return Batch(
                noisy=noisy[rows].to(self.device, self.dtype),
                timesteps=timesteps[rows].to(self.device),
                prompts=embed(captions[rows]),
                target=target[rows].to(self.device),
                anchors=None if anchors is None else embed(anchors[rows]),
                empty=embed(torch.zeros_like(captions[rows])) if kind == FORGET else None,
                uniform=uniform[rows].to(self.device) if kind == FORGET else None,
                weights=None if weights is None else weights[rows].to(self.device),
                surrogate_noisy=None if surrogate is None else surrogate[0][rows].to(self.device, self.dtype),
                surrogate_target=None if surrogate is None else surrogate[1][rows].to(self.device),
                shift=None if shift is None else shift[rows].to(self.device),
                rows=chosen[rows],
                condition_draw=condition_draw[rows],
                contrasted=None if contrasted is None else contrasted[rows],
            )

        mine = torch.arange(count).chunk(self.world)[self.rank]
        return [batch(rows) for rows in mine.chunk(self.micro_batches)]

    def _surrogates(self, anchors: Tensor | None, uniform: Tensor, shape: Tensor, generator: torch.Generator) -> Tensor:
        """What stands in for forgotten pictures: uniform noise of unit variance, or pictures of their anchors."""
        if self.surrogate == "noise" or anchors is None:
            return (2 * uniform - 1) * 3**0.5
        height, width = shape.tolist()
        rows = []
        for anchor in anchors.tolist():
            found = self.surrogate_rows[anchor, height, width]
            rows.append(int(found[torch.randint(len(found), (1,), generator=generator)]))
        return cut(self.retain.latents[rows], shape)

    def _min_snr_weights(self, timesteps: Tensor) -> Tensor:
        """min(SNR, γ) in units of the x₀ loss, carried over to the prediction type (Hang et al., 2023)."""
        alphas = self.noise_scheduler.alphas_cumprod[timesteps]
        snr = alphas / (1 - alphas)
        clipped = snr.clamp_max(self.min_snr_gamma)
        match self.noise_scheduler.config.prediction_type:
            case "epsilon":
                return clipped / snr
            case "v_prediction":
                return clipped / (snr + 1)
            case _:
                return clipped


def _surrogate_rows(forget: EncodedSet, retain: EncodedSet) -> dict[tuple[int, int, int], Tensor]:
    """Rows of the retain pictures that show an anchor, by the anchor's row in the forget set, height and width."""
    wanted = {
        (anchor, *shape)
        for anchors, shape in zip(forget.anchors.tolist(), forget.shapes.tolist(), strict=True)
        for anchor in anchors
    }
    known = {text: row for row, text in enumerate(retain.prompts)}
    found = {}
    for anchor, height, width in sorted(wanted):
        shows = retain.captions == known.get(forget.prompts[anchor], -1)
        rows = (shows & of_shape(retain.shapes, torch.tensor([height, width]))).nonzero().flatten()
        if not len(rows):
            what, remedy = "", "Add the anchor to retain.concepts with the templates of the forget set."
            if bool(shows.any()):
                what, remedy = f" at {width}:{height}", "Add some, or set images.aspect_buckets: false for both sets."
            raise UserError(
                Problem(
                    "retain",
                    forget.prompts[anchor],
                    f"no picture of the retain set{what} has this prompt, which names an anchor.",
                    remedy,
                )
            )
        found[anchor, height, width] = rows
    return found


@torch.no_grad()
def use_base_targets(batch: Batch, predict_base: Predict) -> Batch:
    """The batch, the contrasted samples aimed at the base's prediction, since their noise belongs to the concept."""
    if batch.contrasted is None:
        return batch
    rows = batch.contrasted.nonzero().flatten()
    asked = rows if len(rows) else torch.zeros(1, dtype=torch.long)  # split weights: all processes predict, or none
    asked = asked.to(batch.noisy.device)
    predicted = predict_base(batch.noisy[asked], batch.timesteps[asked], batch.prompts[asked])
    target = batch.target.index_copy(0, asked, predicted.to(batch.target)) if len(rows) else batch.target
    return replace(batch, target=target)


def denoising_target(noise_scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should predict for the noised latents, by the scheduler's prediction type; (B, C, h, w).

    Args:
        noise_scheduler: A diffusers scheduler.
        latents: Clean ones, (B, C, h, w).
        noise: What was added, (B, C, h, w).
        timesteps: (B,) int64.
    """
    match noise_scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return noise_scheduler.get_velocity(latents, noise, timesteps)
        case "sample":
            return latents
        case "flow":
            return noise - latents
        case other:
            raise ValueError(f"unsupported prediction type {other!r}")


def counterpart_shift(noise_scheduler: Any, latents: Tensor, counterparts: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoising target changes by as the picture under x_t goes to its counterpart; (B, C, h, w).

    x_t = √ᾱ x_0 + √(1 − ᾱ) ε stays as it is, so picture and noise change together: to x_0 + (1 − ᾱ)² Δ and
    ε − √ᾱ (1 − ᾱ)^{3/2} Δ, with Δ the way to the counterpart. It goes all of it where x_t is noise, and next to none
    where x_t is the picture already: what is asked for there leaks into retained pictures. Of flow matching likewise.

    Args:
        noise_scheduler: A diffusers scheduler.
        latents: x_0, (B, C, h, w).
        counterparts: What it goes to, (B, C, h, w).
        timesteps: (B,) int64.
    """
    one, nothing = torch.ones_like(latents), torch.zeros_like(latents)
    signal = noise_scheduler.add_noise(one, nothing, timesteps)
    spread = noise_scheduler.add_noise(nothing, one, timesteps)
    share = spread.square() / (signal.square() + spread.square())
    step = share.square() * (counterparts - latents)
    return denoising_target(noise_scheduler, step, -signal / spread * step, timesteps)  # it is linear in both
