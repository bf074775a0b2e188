"""LoHa: the elementwise product of two low-rank matrices (FedPara, Hyeon-Woo et al. 2022; LyCORIS, peft).

ΔW = alpha / r · (A₁ B₁) ∘ (A₂ B₂). For kernels each side may be a Tucker decomposition with a core (r, r, kh, kw).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erasediff_lora.adapter.kinds.base import Kind, Table, core, require

FEW = 256
"""Squared ranks up to which the factors' products are cheaper than ΔW."""
_SIDES = (("hada_w1_a", "hada_w1_b", "hada_t1"), ("hada_w2_a", "hada_w2_b", "hada_t2"))


class _LoHa(Kind):
    title = "LoHa"
    parts = marks = frozenset(name for side in _SIDES for name in side)
    is_flat = True

    def shape(self, parts: Mapping[str, Table]) -> tuple[int, ...]:
        shapes = [_side_shape(parts, *side) for side in _SIDES]
        if shapes[0] != shapes[1] or ("hada_t1" in parts) != ("hada_t2" in parts):
            raise ValueError(f"its two sides are {list(shapes[0])} and {list(shapes[1])}")
        return shapes[0]

    def rank(self, parts: Mapping[str, Table]) -> int | None:
        return int(parts["hada_w1_b"].shape[0])

    def prepared(self, parts: Mapping[str, Any]) -> Mapping[str, Any]:
        done: dict[str, Any] = {}
        for a, b, t in _SIDES:
            done |= {a: parts[a], b: parts[b]} if t not in parts else {a: parts[a].T, b: core(parts[t], parts[b])}
        return done

    def squared_norm(self, parts: Mapping[str, Any], shape: tuple[int, ...]) -> float:
        (a, b), (c, d) = ((parts[left], parts[right]) for left, right, _ in _SIDES)
        products = a.shape[1] * c.shape[1]
        if products > FEW:
            return super().squared_norm(parts, shape)
        up = (a[:, :, None] * c[:, None, :]).reshape(len(a), products)  # as a LoRA of rank r², ΔW = up @ down
        down = (b[:, None, :] * d[None, :, :]).reshape(products, b.shape[1])
        return max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))

    def rows(self, parts: Mapping[str, Any], first: int, last: int) -> Any:
        one, other = (parts[a][first:last] @ parts[b] for a, b, _ in _SIDES)
        return one * other


def _side_shape(parts: Mapping[str, Table], a: str, b: str, t: str) -> tuple[int, ...]:
    require(parts, a, b)
    one, other = tuple(parts[a].shape), tuple(parts[b].shape)
    if t not in parts:  # (out, r) and (r, in)
        if one[1] != other[0]:
            raise ValueError(f"{a} is {list(one)} and {b} {list(other)}")
        return one[0], other[1]
    require(parts, t, ndim=4)
    middle = tuple(parts[t].shape)
    if middle[:2] != (one[0], other[0]):  # (r, out) and (r, in)
        raise ValueError(f"{t} is {list(middle)}, {a} {list(one)} and {b} {list(other)}")
    return one[1], other[1] * middle[2] * middle[3]


KIND = _LoHa()
