"""The pictures of a set as latents: drawn by the base or encoded, in batches of one size."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from erasediff_lora.data.buckets import bucket, by_shape
from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.data.rows import Kind
from erasediff_lora.data.samples import Sample
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.progress import tqdm
from erasediff_lora.recipe import Images, Recipe

log = logging.getLogger(__name__)


def picture_sizes(recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Width and height of every picture, in pixels."""
    side = recipe.sampling.resolution or denoiser.resolution
    images: Images | None = getattr(recipe, kind).images
    keeps = images is not None and images.aspect_buckets
    sizes = [bucket(*s.picture.size, side) if keeps and s.picture else (side, side) for s in samples]
    if len(set(sizes)) > 1:
        log.info("%s set: %d aspect ratios", kind, len(set(sizes)))
    return sizes


def _alike(sizes: Sequence[tuple[int, int]], recipe: Recipe, what: str) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Batches of rows of one size, with the size."""
    count = recipe.sampling.batch_size
    chunks = [(size, chunk) for size, rows in by_shape(torch.tensor(sizes)) for chunk in rows.split(count)]
    for size, chunk in tqdm(chunks, desc=what, unit="batch", leave=False):
        width, height = size.tolist()
        yield (width, height), chunk.tolist()


def _first_seed(recipe: Recipe, kind: Kind) -> int:
    """Forget and retain pictures come from disjoint seeds."""
    return recipe.sampling.seed + (0 if kind == "forget" else 500_000)


def picture_latents(
    recipe: Recipe, denoiser: Denoiser, kind: Kind, samples: Sequence[Sample], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Of every picture (C, h, w); float32, on the CPU."""
    latents: dict[int, Tensor] = {}
    for size, rows in _alike(sizes, recipe, f"{kind} set"):
        drawn = [samples[row] for row in rows]
        if getattr(recipe, kind).images is not None:
            pixels = torch.stack([to_unit_tensor(sample.picture.image, size) for sample in drawn if sample.picture])
            encoded = denoiser.encode_images(pixels)
        else:
            captions, seeds = [sample.caption for sample in drawn], [_first_seed(recipe, kind) + row for row in rows]
            encoded = denoiser.generate(captions, seeds, recipe.sampling, output="latent")
        latents |= zip(rows, encoded.float().cpu(), strict=True)
    return [latents[row] for row in range(len(samples))]


def counterpart_latents(
    recipe: Recipe, denoiser: Denoiser, samples: Sequence[Sample], sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """What the base draws of every picture's anchor from the picture's seed, (C, h, w); float32, on the CPU.

    Pictures that were read have no seed: they share `forget.count` counterparts of an anchor.
    """
    first, count = _first_seed(recipe, "forget"), recipe.forget.count
    wanted = [
        (s.anchors[0], first + row % count, size) for row, (s, size) in enumerate(zip(samples, sizes, strict=True))
    ]
    distinct = list(dict.fromkeys(wanted))
    latents: dict[tuple[str, int, tuple[int, int]], Tensor] = {}
    for size, rows in _alike([size for *_, size in distinct], recipe, "counterparts"):
        chosen = [distinct[row] for row in rows]
        anchors, seeds = [anchor for anchor, _, _ in chosen], [seed for _, seed, _ in chosen]
        drawn = denoiser.generate(anchors, seeds, recipe.sampling, output="latent", size=size)
        latents |= zip(chosen, drawn.float().cpu(), strict=True)
    return [latents[one] for one in wanted]
