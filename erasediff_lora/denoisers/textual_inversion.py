"""Searching for a condition that brings a concept back, through the denoising loss of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora.denoisers.base import Denoiser, NoisedBatch
from erasediff_lora.machine.progress import tqdm
from erasediff_lora.objectives.loss_scaling import loss_scale, unscaled_gradients


def slot_loss(
    denoiser: Denoiser,
    batch: NoisedBatch,
    vectors: Tensor,
    wording: Callable[[str], str] = lambda caption: caption,
) -> Tensor:
    """The denoising loss of a batch, with `vectors` (V, E) in the place of SLOT.

    Args:
        denoiser: The attacked model.
        batch: Captions with SLOT.
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
    label: str | None = None,
    at_once: int | None = None,
) -> tuple[Tensor, list[float]]:
    """Optimise token embeddings on the denoising loss; the model stays as it is.

    Args:
        denoiser: The attacked model.
        stream: Batches whose captions have SLOT.
        start: (V, E).
        steps: Of AdamW.
        learning_rate: In units of the embeddings' spread.
        label: Of the progress bar; None: none is shown.
        at_once: Pictures of a batch that the network sees together: fewer take less memory; None: all.

    Returns:
        The embeddings (V, E), and the loss of every step.
    """
    unit = float(denoiser.token_embeddings.detach().float().std())
    vectors = (start / unit).requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=learning_rate, weight_decay=0.0)
    losses: list[Tensor] = []
    for _, batch in zip(tqdm(range(steps), desc=label, leave=False, disable=label is None), stream, strict=False):
        vectors.grad, total = torch.zeros_like(vectors), vectors.new_zeros(())
        for part, share in _parts(batch, at_once):
            loss = slot_loss(denoiser, part, vectors * unit) * share
            vectors.grad += unscaled_gradients(loss, [vectors], loss_scale(denoiser.dtype))[0]
            total = total + loss.detach()
        optimizer.step()
        losses.append(total)
    return vectors.detach() * unit, torch.stack(losses).tolist() if losses else []  # one wait for the device


def _parts(batch: NoisedBatch, at_once: int | None) -> Iterator[tuple[NoisedBatch, float]]:
    """A batch in parts of so many pictures, each with its share of it."""
    noisy, timesteps, target, captions = batch
    size = len(captions) if at_once is None else at_once
    for start in range(0, len(captions), size):
        rows = slice(start, start + size)
        part = noisy[rows], timesteps[rows], target[rows], captions[rows]
        yield part, len(part[3]) / len(captions)
