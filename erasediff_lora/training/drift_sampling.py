"""Keeping what is near: which retain prompts the erasure disturbs most, by the drift of the prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from erasediff_lora.data.captioned import CaptionedPictures
from erasediff_lora.data.micro_batches import MicroBatches
from erasediff_lora.data.sets import EncodedSet
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.objectives.base import Predict
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.recipe import RetainSet
from erasediff_lora.training.hooks import Hook

LOOKED_AT = 2
"""Pictures that are only looked at, for one that is trained on: no more memory, as nothing is kept of them."""
MEMORY = 0.7
"""Share of a prompt's earlier score that is left after a new measurement of it."""


class DriftSampler(Hook):
    """‖ε_θ − ε_0‖² of every retain prompt, measured on a few noised retain pictures from time to time.

    Args:
        settings: Its `focus`.
        denoiser: The network in training.
        retain: D_r.
        predict_base: ε_0.
        mean: Averages over processes, so that all of them draw the same batches.
        seed: Of the pictures, timesteps and noise.
        micro_batches: It looks at no more than LOOKED_AT times as many pictures at once as a step trains on.
    """

    name = "drift_sampler"

    def __init__(
        self,
        settings: RetainSet,
        denoiser: Denoiser,
        retain: EncodedSet,
        predict_base: Predict,
        mean: Callable[[Tensor], Tensor],
        seed: int,
        micro_batches: MicroBatches | None = None,
    ) -> None:
        self.settings, self.denoiser, self.retain = settings, denoiser, retain
        self.predict_base, self.mean, self.seed = predict_base, mean, seed
        self.micro_batches = micro_batches or MicroBatches(settings.focus_samples)
        self.rows = {text: row for row, text in enumerate(retain.prompts)}
        captions = [retain.prompts[row] for row in retain.captions.tolist()]
        self.pictures = CaptionedPictures(retain.latents, retain.shapes, captions)
        self.scores = torch.zeros(len(retain.prompts))
        """By prompt; 0: not measured yet, or not disturbed at all."""

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Look at some pictures, if it is time."""
        if step == 0 or step % self.settings.focus_every:
            return
        settings, seed = self.settings, self.seed * 1_000_003 + step
        noisy, timesteps, _, texts = next(self.pictures.noised(self.denoiser, settings.focus_samples, seed))
        captions = torch.tensor([self.rows[text] for text in texts])
        given = noisy, timesteps, self.retain.embeddings[captions].to(noisy)
        drift = self.micro_batches.fit(lambda: self._drifts(given, len(texts)))
        drift = self.mean(drift).cpu()
        for caption in captions.unique():
            new, old = drift[captions == caption].mean(), self.scores[caption]
            if torch.isfinite(new):
                self.scores[caption] = new if old == 0 else MEMORY * old + (1 - MEMORY) * new

    def _drifts(self, given: tuple[Tensor, Tensor, Condition], count: int) -> Tensor:
        parts = torch.arange(count).split(LOOKED_AT * self.micro_batches.at_once)
        return torch.cat([self._drift(given, rows) for rows in parts])

    def _drift(self, given: tuple[Tensor, Tensor, Condition], rows: Tensor) -> Tensor:
        """How far the prediction of some pictures has moved, (B,)."""
        noisy, timesteps, told = given[0][rows], given[1][rows], given[2][rows]
        moved = self.denoiser.predict(noisy, timesteps, told) - self.predict_base(noisy, timesteps, told)
        return moved.float().square().flatten(1).mean(dim=1)

    def retain_weights(self) -> Tensor | None:
        """How often each retain picture should be drawn, (N,), relative to the others; None: all alike."""
        known = self.scores > 0
        if not bool(known.any()):
            return None
        scores = torch.where(known, self.scores, self.scores[known].mean())
        return scores[self.retain.captions]

    def state(self) -> Tensor:
        """The scores."""
        return self.scores

    def load_state(self, state: Tensor) -> None:
        """Put what `state` returned back."""
        self.scores = state
