"""Low-rank factors of a weight's update."""

from __future__ import annotations

import torch
from torch import Tensor

from erasediff_lora.adapter.weights import LoraLayer


def orthonormal(layer: LoraLayer) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of ΔW, through its factors: the full matrix is never formed.

    Returns:
        U (out, r), S (r,) in falling order, Vᵀ (r, in · kh · kw), in float64.
    """
    q_up, r_up = torch.linalg.qr(layer.up.double().flatten(1))
    q_down, r_down = torch.linalg.qr(layer.down.double().flatten(1).T)
    u, s, vt = torch.linalg.svd(r_up @ r_down.T * layer.scale)
    return q_up @ u, s, vt @ q_down.T


def from_svd(u: Tensor, s: Tensor, vt: Tensor, shape: tuple[int, ...]) -> LoraLayer:
    """A float32 layer with U√S as B and √S Vᵀ as A, and alpha = rank.

    Args:
        u: (out, r).
        s: (r,).
        vt: (r, in · kh · kw).
        shape: Of the weight, (out, in) or (out, in, kh, kw).
    """
    root = s.sqrt()
    ones = [1] * (len(shape) - 2)
    return LoraLayer(
        down=(root[:, None] * vt).float().reshape(len(s), *shape[1:]).contiguous(),
        up=(u * root).float().reshape(shape[0], len(s), *ones).contiguous(),
        alpha=float(len(s)),
    )


def kept(s: Tensor, rank: int | None, energy: float | None) -> int:
    """How many singular values to keep, at least one: up to `rank`, or as many as hold that share of Σσ²."""
    count = len(s)
    if energy is not None:
        squares = s.square()
        reached = squares.cumsum(0) >= energy * squares.sum()
        count = int(reached.double().argmax()) + 1 if bool(reached.any()) else len(s)
    return max(1, min(count, rank or count))


def nearest(delta: Tensor, rank: int | None, energy: float | None) -> tuple[LoraLayer, float]:
    """The best factors of ΔW, and the share of its energy that they hold.

    The eigenvectors of the smaller Gram matrix in float64 are the singular vectors, at a fraction of an SVD's cost.
    """
    matrix = delta.flatten(1)
    is_tall = matrix.shape[0] > matrix.shape[1]
    values, vectors = torch.linalg.eigh(matrix.T @ matrix if is_tall else matrix @ matrix.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    count = kept(values.sqrt(), rank, energy)
    vectors = vectors[:, :count]
    s = values[:count].sqrt()
    inverse = torch.where(s > 0, 1 / s, 0)
    u, vt = (matrix @ vectors * inverse, vectors.T) if is_tall else (vectors, inverse[:, None] * (vectors.T @ matrix))
    total = float(values.sum())
    return from_svd(u, s, vt, tuple(delta.shape)), float(values[:count].sum()) / total if total else 1.0
