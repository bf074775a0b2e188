"""Searching for a condition that brings a concept back, through the denoising loss of its pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from erasediff_lora.data.batches import balanced_choice, denoising_target
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.files import sha256


@dataclass(frozen=True)
class ForgetPictures:
    """The attacker's pictures of a concept.

    Attributes:
        latents: (N, C, h, w), scaled.
        captions: N prompts, with SLOT in the place of the concept's name.
    """

    latents: Tensor
    captions: list[str]

    @property
    def fingerprint(self) -> str:
        """A hash of all of it."""
        return sha256(self.latents.float().contiguous().numpy().tobytes() + json.dumps(self.captions).encode())


def showing(texts: Sequence[str], concept: str, others: Sequence[str]) -> list[int]:
    """Which of the captions are of pictures of a concept: those that name it, or none of the other forgotten ones."""
    return [
        index
        for index, text in enumerate(texts)
        if concept.lower() in text.lower() or not any(name.lower() in text.lower() for name in others)
    ]


NoisedBatch = tuple[Tensor, Tensor, Tensor, list[str]]
"""x_t, t, the denoising target, and the captions."""


def batches(pictures: ForgetPictures, denoiser: Denoiser, size: int, seed: int) -> Iterator[NoisedBatch]:
    """Endless noised batches of the pictures."""
    generator = torch.Generator().manual_seed(seed)
    scheduler = denoiser.noise_scheduler
    while True:
        rows = balanced_choice(len(pictures.latents), size, generator)
        latents = pictures.latents[rows].float()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (size,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps).to(denoiser.device, denoiser.dtype)
        target = denoising_target(scheduler, latents, noise, timesteps).to(denoiser.device)
        yield noisy, timesteps.to(denoiser.device), target, [pictures.captions[row] for row in rows.tolist()]


def slot_loss(
    denoiser: Denoiser,
    batch: NoisedBatch,
    vectors: Tensor,
    wording: Callable[[str], str] = lambda caption: caption,
) -> Tensor:
    """The denoising loss of a batch, with `vectors` (V, E) in the place of SLOT.

    Args:
        denoiser: The attacked model.
        batch: From `batches`.
        vectors: Token embeddings.
        wording: Turns a caption into the prompt, which has a SLOT.
    """
    noisy, timesteps, target, captions = batch
    texts = list(dict.fromkeys(captions))
    encoded = denoiser.encode_slots([wording(text) for text in texts], vectors)
    prompts = encoded[[texts.index(caption) for caption in captions]].to(denoiser.dtype)
    return F.mse_loss(denoiser.predict(noisy, timesteps, prompts).float(), target.float())


def starting_vectors(denoiser: Denoiser, words: list[str], count: int, restart: int, seed: int) -> Tensor:
    """Where a restart begins: at noise of the table's spread, every third one at a retained concept's name; (V, E)."""
    table = denoiser.token_embeddings.detach().float()
    if restart % 3 == 2 and words:
        word = denoiser.embed_word(words[restart // 3 % len(words)]).detach().float()
        return word.mean(dim=0, keepdim=True).repeat(count, 1)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, table.shape[1], generator=generator)
    return table.mean(dim=0) + noise.to(table.device) * table.std(dim=0)


def invert(
    denoiser: Denoiser,
    stream: Iterator[NoisedBatch],
    start: Tensor,
    *,
    steps: int,
    learning_rate: float,
    label: str,
) -> tuple[Tensor, list[float]]:
    """Optimise token embeddings on the denoising loss; the model stays as it is.

    Args:
        denoiser: The attacked model.
        stream: From `batches`.
        start: (V, E).
        steps: Of AdamW.
        learning_rate: In units of the embeddings' spread.
        label: Of the progress bar.

    Returns:
        The embeddings (V, E), and the loss of every step.
    """
    unit = float(denoiser.token_embeddings.detach().float().std())
    vectors = (start / unit).requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=learning_rate, weight_decay=0.0)
    losses = []
    for _, batch in zip(tqdm(range(steps), desc=label, leave=False), stream, strict=False):
        loss = slot_loss(denoiser, batch, vectors * unit)
        (vectors.grad,) = torch.autograd.grad(loss, [vectors])
        optimizer.step()
        losses.append(float(loss.detach()))
    return vectors.detach() * unit, losses
