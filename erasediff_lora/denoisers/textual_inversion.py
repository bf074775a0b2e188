"""Searching for a condition that brings a concept back, through the denoising loss of its pictures.

Where it is searched for is a `SearchSpace`: among the embeddings of tokens, which the text encoder reads as it reads
words, or among what the text encoder hands out, for which it need not be in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora.denoisers.base import Denoiser, NoisedBatch
from erasediff_lora.machine.progress import tqdm, whole
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.objectives.loss_scaling import loss_scale, unscaled_gradients

Key = TypeVar("Key")
Owned = tuple[int, str]
"""The number of a search, and a caption of its batch."""


class SearchSpace(Protocol):
    """What is searched in, on one model."""

    @property
    def unit(self) -> float:
        """The spread of what the vectors stand beside."""
        ...

    def start(self, words: Sequence[str], count: int, restart: int, seed: int) -> Tensor:
        """Where a restart begins, (V, E)."""
        ...

    def told(self, captions: Sequence[str], vectors: Tensor) -> Condition:
        """What the network is told of captions and vectors, (V, E) or (N, V, E); differentiable in them."""
        ...


class Tokens:
    """Embeddings of tokens, which take the place of SLOT in captions: a new word.

    Args:
        denoiser: The model, with its text encoders.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    @property
    def unit(self) -> float:
        return float(self.denoiser.token_embeddings.detach().float().std())

    def start(self, words: Sequence[str], count: int, restart: int, seed: int) -> Tensor:
        """At noise of the table's spread, every third time at the name of one of the words."""
        table = self.denoiser.token_embeddings.detach().float()
        if restart % 3 == 2 and words:
            word = self.denoiser.embed_word(words[restart // 3 % len(words)]).detach().float()
            return word.mean(dim=0, keepdim=True).repeat(count, 1)
        return _noise(table, count, seed)

    def told(self, captions: Sequence[str], vectors: Tensor) -> Condition:
        return self.denoiser.encode_slots(captions, vectors)


class Outputs:
    """Tokens as the text encoder hands them out, behind those of the whole caption, the concept's name among them.

    Where a prompt has a pooled embedding besides, each vector goes on with a step away from that.

    Args:
        encode: What the network is told of captions; nothing is differentiated through it.
        like: Some of it, whose spread is that of the search.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Condition], like: Condition) -> None:
        self.encode = encode
        there = slice(None) if like.mask is None else like.mask
        self._tokens = like.tokens[there].float().flatten(0, -2)
        self._pooled_width = 0 if like.pooled is None else like.pooled.shape[1]

    @property
    def unit(self) -> float:
        return float(self._tokens.std())

    def start(self, words: Sequence[str], count: int, restart: int, seed: int) -> Tensor:
        """At noise of the tokens' spread, the pooled embedding where it is."""
        return F.pad(_noise(self._tokens, count, seed), (0, self._pooled_width))

    def told(self, captions: Sequence[str], vectors: Tensor) -> Condition:
        plain = self.encode(captions)
        vectors = vectors.expand(len(captions), *vectors.shape[-2:])
        width = plain.tokens.shape[-1]
        steps = None if plain.pooled is None else vectors[..., width:].sum(dim=1)
        return plain.with_more(vectors[..., :width], steps)


def _noise(table: Tensor, count: int, seed: int) -> Tensor:
    """So many vectors with the mean and the spread of a table's rows."""
    noise = torch.randn(count, table.shape[1], generator=torch.Generator().manual_seed(seed))
    return table.mean(dim=0) + noise.to(table.device) * table.std(dim=0)


def losses_under(
    denoiser: Denoiser, batch: tuple[Tensor, Tensor, Tensor, list[Key]], told: Callable[[list[Key]], Condition]
) -> Tensor:
    """The denoising loss of each picture of a batch, (B,).

    Args:
        denoiser: The attacked model.
        batch: Pictures with their captions, or with what stands for them.
        told: What the network is told of those.
    """
    noisy, timesteps, target, captions = batch
    texts = list(dict.fromkeys(captions))
    prompts = told(texts)[[texts.index(caption) for caption in captions]].to(denoiser.dtype)
    prediction = denoiser.predict(noisy, timesteps, prompts)
    return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(dim=1)


def loss_under(denoiser: Denoiser, batch: NoisedBatch, told: Callable[[list[str]], Condition]) -> Tensor:
    """The same of the whole batch."""
    return losses_under(denoiser, batch, told).mean()


def slot_loss(denoiser: Denoiser, batch: NoisedBatch, vectors: Tensor, wording: Callable[[str], str]) -> Tensor:
    """The denoising loss of a batch, with `vectors` (V, E) in the place of SLOT.

    Args:
        denoiser: The attacked model.
        batch: Captions with SLOT.
        vectors: Token embeddings.
        wording: Turns a caption into the prompt, which has a SLOT.
    """
    return loss_under(denoiser, batch, lambda texts: denoiser.encode_slots([wording(text) for text in texts], vectors))


@dataclass(frozen=True)
class Search:
    """One of several that go on side by side.

    Attributes:
        stream: Its batches, with captions as the space takes them.
        start: Where it begins, (V, E).
    """

    stream: Iterator[NoisedBatch]
    start: Tensor


def invert(
    denoiser: Denoiser,
    space: SearchSpace,
    searches: Sequence[Search],
    *,
    steps: int,
    learning_rate: float,
    label: str | None = None,
    at_once: int | None = None,
) -> list[tuple[Tensor, list[float]]]:
    """Optimise vectors on the denoising loss; the model stays as it is.

    Args:
        denoiser: The attacked model.
        space: What the vectors mean.
        searches: Each for vectors of its own, as many in all; it finds what it would find alone.
        steps: Of AdamW.
        learning_rate: In units of the space's spread.
        label: Of the progress bar; None: none is shown.
        at_once: Pictures that the network sees together, of whichever searches: fewer take less memory; None: all.

    Returns:
        Of each search the vectors (V, E), and the loss of every step.
    """
    unit = space.unit
    vectors = (torch.stack([search.start for search in searches]) / unit).requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=learning_rate, weight_decay=0.0)
    reached: list[Tensor] = []
    bar = tqdm(range(steps), desc=label, leave=False, disable=label is None)
    for _, *batches in zip(bar, *(search.stream for search in searches), strict=False):
        vectors.grad, losses = torch.zeros_like(vectors), vectors.new_zeros(len(searches))
        for part in _parts(batches, at_once):
            owners = torch.tensor([number for number, _ in part[3]], device=losses.device)
            sizes = torch.tensor([len(batches[number][3]) for number, _ in part[3]], device=losses.device)

            def told(captions: list[Owned]) -> Condition:
                rows = 0 if len(searches) == 1 else [number for number, _ in captions]
                own = vectors[rows] * unit  # of a single search added up as before, for the same last bits
                return space.told([caption for _, caption in captions], own)

            shares = losses_under(denoiser, part, told) / sizes
            vectors.grad += unscaled_gradients(shares.sum(), [vectors], loss_scale(denoiser.dtype))[0]
            losses.index_add_(0, owners, shares.detach())
        optimizer.step()
        reached.append(losses)
        if label is not None:  # a search of an evaluation's
            whole.add(3 * sum(len(batch[3]) for batch in batches))
    by_search = torch.stack(reached, dim=1).tolist() if reached else [[]] * len(searches)  # one wait for the device
    return list(zip(vectors.detach() * unit, by_search, strict=True))


def _parts(batches: Sequence[NoisedBatch], at_once: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor, list[Owned]]]:
    """The batches of all searches in parts of one shape and of so many pictures."""
    alike: dict[torch.Size, list[int]] = {}
    for number, batch in enumerate(batches):
        alike.setdefault(batch[0].shape[1:], []).append(number)
    for numbers in alike.values():
        chosen = [batches[number] for number in numbers]
        noisy, timesteps, target = map(torch.cat, zip(*(batch[:3] for batch in chosen), strict=True))
        captions = [(number, caption) for number in numbers for caption in batches[number][3]]
        size = at_once or len(captions)
        for start in range(0, len(captions), size):
            rows = slice(start, start + size)
            yield noisy[rows], timesteps[rows], target[rows], captions[rows]
