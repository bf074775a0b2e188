"""Training some of a network's weights on pictures, as far as it must for the next ones that are drawn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from erasediff_lora.data.captioned import CaptionedPictures
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.machine.progress import tqdm
from erasediff_lora.objectives.loss_scaling import loss_scale, unscaled_gradients


class FineTuning:
    """Trains on the denoising loss with AdamW, without weight decay.

    Args:
        denoiser: The model.
        parameters: What is trained.
        pictures: With their captions in full.
        batch_size: Pictures a step.
        learning_rate: Of AdamW.
        seed: Of the batches.
        label: Of the progress bar.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        parameters: Sequence[nn.Parameter],
        pictures: CaptionedPictures,
        *,
        batch_size: int,
        learning_rate: float,
        seed: int,
        label: str,
    ) -> None:
        self.denoiser, self.parameters, self.label = denoiser, list(parameters), label
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.0)
        self.batches = pictures.noised(denoiser, batch_size, seed)
        texts = list(dict.fromkeys(pictures.captions))
        self.rows = {text: row for row, text in enumerate(texts)}
        self.prompts = denoiser.encode_prompts(texts)
        self.done = 0

    def advance(self, step: int) -> None:
        """Train on to that step."""
        denoiser = self.denoiser
        todo = range(self.done, step)
        progress = tqdm(todo, desc=f"{self.label} to step {step}", leave=False)
        for _, batch in zip(progress, itertools.islice(self.batches, len(todo)), strict=True):
            noisy, timesteps, target, captions = batch
            prompts = self.prompts[[self.rows[caption] for caption in captions]].to(denoiser.dtype)
            loss = F.mse_loss(denoiser.predict(noisy, timesteps, prompts).float(), target.float())
            gradients = unscaled_gradients(loss, self.parameters, loss_scale(denoiser.dtype))
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
        self.done = max(self.done, step)
