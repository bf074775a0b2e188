"""LoKr: the Kronecker product of a small matrix and a larger one, either of which may be low-rank (LyCORIS, peft).

ΔW = alpha / r · W₁ ⊗ W₂. Where neither is low-rank there is no r: LyCORIS and ComfyUI take ΔW as it is then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from erasediff_lora.adapter.kinds.base import Kind, Table, core, require


class _LoKr(Kind):
    title = "LoKr"
    parts = marks = frozenset(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"))
    is_flat = True

    def shape(self, parts: Mapping[str, Table]) -> tuple[int, ...]:
        for whole in ("lokr_w1", "lokr_w2"):
            factors = sorted(parts.keys() & {f"{whole}_a", f"{whole}_b", whole.replace("w", "t")})
            if whole in parts and factors:
                raise ValueError(f"{', '.join(factors)} beside {whole}")
        (rows, columns), (more_rows, more_columns) = _small(parts), _large(parts)
        return rows * more_rows, columns * more_columns

    def rank(self, parts: Mapping[str, Table]) -> int | None:
        found = parts.get("lokr_w2_b", parts.get("lokr_w1_b"))
        return None if found is None else int(found.shape[0])

    def prepared(self, parts: Mapping[str, Any]) -> Mapping[str, Any]:
        small = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
        if "lokr_w2" in parts:
            large = parts["lokr_w2"].reshape(parts["lokr_w2"].shape[0], -1)
        elif "lokr_t2" in parts:
            large = parts["lokr_w2_a"].T @ core(parts["lokr_t2"], parts["lokr_w2_b"])
        else:
            second = parts["lokr_w2_b"]
            large = parts["lokr_w2_a"] @ second.reshape(second.shape[0], -1)
        return {"lokr_w1": small, "lokr_w2": large}

    def squared_norm(self, parts: Mapping[str, Any], shape: tuple[int, ...]) -> float:
        return math.prod(float((parts[name] ** 2).sum()) for name in ("lokr_w1", "lokr_w2"))

    def rows(self, parts: Mapping[str, Any], first: int, last: int) -> Any:
        small, large = parts["lokr_w1"], parts["lokr_w2"]
        height = large.shape[0]
        begin, end = first // height, -(-last // height)
        product = small[begin:end, None, :, None] * large[None, :, None, :]
        whole = product.reshape((end - begin) * height, small.shape[1] * large.shape[1])
        return whole[first - begin * height : last - begin * height]


def _small(parts: Mapping[str, Table]) -> tuple[int, int]:
    """Rows and columns of W₁."""
    if "lokr_w1" in parts:
        require(parts, "lokr_w1")
        rows, columns = parts["lokr_w1"].shape
        return rows, columns
    return _product(parts, "lokr_w1_a", "lokr_w1_b")


def _large(parts: Mapping[str, Table]) -> tuple[int, int]:
    """Rows and columns of W₂, a kernel's height and width among the columns."""
    if "lokr_w2" in parts:
        require(parts, "lokr_w2", ndim=(2, 4))
        shape = parts["lokr_w2"].shape
        return shape[0], math.prod(shape[1:])
    if "lokr_t2" not in parts:
        return _product(parts, "lokr_w2_a", "lokr_w2_b", (2, 4))
    require(parts, "lokr_w2_a", "lokr_w2_b")
    require(parts, "lokr_t2", ndim=4)
    (rank, rows), (inner, columns) = parts["lokr_w2_a"].shape, parts["lokr_w2_b"].shape
    shape = parts["lokr_t2"].shape
    if shape[:2] != (rank, inner):
        raise ValueError(f"lokr_t2 is {list(shape)}, lokr_w2_a {[rank, rows]} and lokr_w2_b {[inner, columns]}")
    return rows, columns * shape[2] * shape[3]


def _product(parts: Mapping[str, Table], a: str, b: str, ndim: int | tuple[int, ...] = 2) -> tuple[int, int]:
    require(parts, a)
    require(parts, b, ndim=ndim)
    (rows, rank), (inner, *columns) = parts[a].shape, parts[b].shape
    if rank != inner:
        raise ValueError(f"{a} is {[rows, rank]} and {b} {[inner, *columns]}")
    return rows, math.prod(columns)


KIND = _LoKr()
