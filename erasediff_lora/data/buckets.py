"""Pictures of several shapes in one set: aspect-ratio buckets. A batch is of one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from erasediff_lora.data.shards import stacked

WIDEST = 2.0
"""Aspect ratio of the longest bucket; what is longer is cropped to it."""


def bucket(width: int, height: int, side: int) -> tuple[int, int]:
    """The shape nearest to a picture's, of no more than `side`² pixels.

    Args:
        width: Of the picture.
        height: Of the picture.
        side: Of the square that the model draws.

    Returns:
        Width and height, multiples of 64 as UNets want them; of 8 for models that draw less than 512 pixels.
    """
    step = 64 if side >= 512 else 8
    ratio = min(max(width / height, 1 / WIDEST), WIDEST)
    shapes = []
    for short in range(step, side + 1, step):
        long = min(side * side // short, int(short * WIDEST)) // step * step
        if long >= short:
            shapes += [(short, long), (long, short)]
    # Of equally near ones the largest.
    return min(shapes, key=lambda shape: (round(abs(math.log(shape[0] / shape[1] / ratio)), 6), -shape[0] * shape[1]))


def padded(latents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Latents of several shapes in one tensor, each in the upper left corner.

    Args:
        latents: N of (C, h, w).

    Returns:
        (N, C, H, W) with the largest h and w, and the shapes, (N, 2) int64.
    """
    return stacked(latents), torch.tensor([one.shape[1:] for one in latents])


def cut(latents: Tensor, shape: Tensor) -> Tensor:
    """What `padded` was given, of pictures of one shape: (N, C, H, W) to (N, C, h, w)."""
    height, width = shape.tolist()
    return latents[:, :, :height, :width]


def of_shape(shapes: Tensor, shape: Tensor) -> Tensor:
    """Which pictures have that shape: (N,) bool."""
    return (shapes == shape).all(dim=1)


def by_shape(shapes: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Every shape (2,) with the rows that have it."""
    return [(shape, of_shape(shapes, shape).nonzero().flatten()) for shape in shapes.unique(dim=0)]


def choose_alike(shapes: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random rows of one shape, which is chosen as often as pictures have it; none twice as far as they go.

    Args:
        shapes: (N, 2).
        count: How many.
        generator: Is asked for a shape only where there are several.

    Returns:
        Rows (count,) and their shape (2,).
    """
    shape = shapes[0]
    if bool((shapes != shape).any()):
        shape = shapes[int(torch.randint(len(shapes), (1,), generator=generator))]
    rows = of_shape(shapes, shape).nonzero().flatten()
    return rows[balanced_choice(len(rows), count, generator)], shape


def balanced_choice(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` random indices, without repetition as far as `total` goes."""
    passes = [torch.randperm(total, generator=generator) for _ in range(-(-count // total))]
    return torch.cat(passes)[:count]
