"""Pictures with their captions, and noised batches of them without end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from erasediff_lora.data.buckets import choose_alike, cut
from erasediff_lora.data.noising import denoising_target
from erasediff_lora.data.shards import Rows
from erasediff_lora.denoisers import Denoiser, NoisedBatch

AT_ONCE = 256
"""Pictures that are hashed at a time."""


@dataclass(frozen=True)
class CaptionedPictures:
    """Encoded pictures.

    Attributes:
        latents: (N, C, H, W), scaled, on the CPU or on the disk; of several shapes as `buckets.padded` puts them.
        shapes: (N, 2), heights and widths.
        captions: N prompts; an attacker's have SLOT in the place of the concept's name.
    """

    latents: Rows
    shapes: Tensor
    captions: list[str]

    @property
    def fingerprint(self) -> str:
        """A hash of all of it."""
        digest = hashlib.sha256()
        for start in range(0, len(self.captions), AT_ONCE):
            digest.update(self.latents[start : start + AT_ONCE].float().contiguous().numpy().tobytes())
        digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()

    def noised(self, denoiser: Denoiser, size: int, seed: int) -> Iterator[NoisedBatch]:
        """Endless batches, on the denoiser's device."""
        generator = torch.Generator().manual_seed(seed)
        scheduler = denoiser.noise_scheduler
        while True:
            rows, shape = choose_alike(self.shapes, size, generator)
            latents = cut(self.latents[rows], shape).float()
            noise = torch.randn(latents.shape, generator=generator)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (size,), generator=generator)
            noisy = scheduler.add_noise(latents, noise, timesteps).to(denoiser.device, denoiser.dtype)
            target = denoising_target(scheduler, latents, noise, timesteps).to(denoiser.device)
            yield noisy, timesteps.to(denoiser.device), target, [self.captions[row] for row in rows.tolist()]
