"""The pictures of a set as latents: drawn by the base or encoded, in batches of one size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasediff_lora.data.buckets import bucket, by_shape
from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.data.rows import Kind
from erasediff_lora.data.samples import Sample
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.recipe import Images, Recipe

log = logging.getLogger(__name__)
READ_AT_ONCE = 512
"""Pictures of a shard that are read; what is drawn takes so long that every batch is kept by itself."""

Size = tuple[int, int]
"""Width and height of a picture, in pixels."""


@dataclass(frozen=True)
class Plan:
    """What is drawn or encoded, and in which parts it is kept.

    Attributes:
        what: It is, in words.
        captions: Of each row.
        shards: The rows of each, all of one size.
        batch_size: Rows that are computed at once.
        compute: Latents of a batch of rows, (B, C, h, w).
        drawn: Whether the base draws them.
    """

    what: str
    captions: Sequence[str]
    shards: Sequence[Sequence[int]]
    batch_size: int
    compute: Callable[[Sequence[int]], Tensor]
    drawn: bool

    def latents(self, number: int) -> Tensor:
        """Those of a shard; float32, on the CPU."""
        rows = self.shards[number]
        batches = (rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size))
        return torch.cat([self.compute(batch).float().cpu() for batch in batches])


def picture_sizes(recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample]) -> list[Size]:
    """Width and height of every picture, in pixels."""
    side = recipe.sampling.resolution or denoiser.resolution
    images: Images | None = getattr(recipe, kind).images
    keeps = images is not None and images.aspect_buckets
    sizes = [bucket(*s.picture.size, side) if keeps and s.picture else (side, side) for s in samples]
    if len(set(sizes)) > 1:
        log.info("%s set: %d aspect ratios", kind, len(set(sizes)))
    return sizes


def plan_pictures(
    recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample], sizes: Sequence[Size]
) -> Plan:
    """A set's pictures."""

    def encode(rows: Sequence[int]) -> Tensor:
        pictures = [(picture, sizes[row]) for row in rows if (picture := samples[row].picture)]
        return denoiser.encode_images(torch.stack([to_unit_tensor(one.image, size) for one, size in pictures]))

    def draw(rows: Sequence[int]) -> Any:
        captions, seeds = [samples[row].caption for row in rows], [_first_seed(recipe, kind) + row for row in rows]
        return denoiser.generate(captions, seeds, recipe.sampling, output="latent")

    count, drawn = recipe.sampling.batch_size, getattr(recipe, kind).images is None
    each = count if drawn else max(1, READ_AT_ONCE // count) * count
    captions = [sample.caption for sample in samples]
    return Plan("picture", captions, list(_alike(sizes, each)), count, draw if drawn else encode, drawn)


def plan_counterparts(
    recipe: Recipe, denoiser: Denoiser, samples: Sequence[Sample], sizes: Sequence[Size]
) -> tuple[Plan, Tensor]:
    """What the base draws of every picture's anchor from the picture's seed.

    Pictures that were read have no seed: they share `forget.count` counterparts of an anchor.

    Returns:
        The distinct ones, and which of them each picture has, (N,).
    """
    first, count = _first_seed(recipe, "forget"), recipe.forget.count
    wanted = [
        (s.anchors[0], first + row % count, size) for row, (s, size) in enumerate(zip(samples, sizes, strict=True))
    ]
    distinct = list(dict.fromkeys(wanted))
    number = {one: row for row, one in enumerate(distinct)}

    def draw(rows: Sequence[int]) -> Any:
        anchors, seeds = [distinct[row][0] for row in rows], [distinct[row][1] for row in rows]
        return denoiser.generate(anchors, seeds, recipe.sampling, output="latent", size=distinct[rows[0]][2])

    shards = list(_alike([size for *_, size in distinct], recipe.sampling.batch_size))
    plan = Plan("counterpart", [one for one, *_ in distinct], shards, recipe.sampling.batch_size, draw, True)
    return plan, torch.tensor([number[one] for one in wanted])


def _alike(sizes: Sequence[Size], count: int) -> Iterator[list[int]]:
    """So many rows of one size at a time."""
    for _, rows in by_shape(torch.tensor(sizes)):
        yield from (chunk.tolist() for chunk in rows.split(count))


def _first_seed(recipe: Recipe, kind: Kind) -> int:
    """Forget and retain pictures come from disjoint seeds."""
    return recipe.sampling.seed + (0 if kind == "forget" else 500_000)
