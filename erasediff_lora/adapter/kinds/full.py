"""A difference kept whole: LyCORIS' `full` and `norm`, and the biases beside any kind. alpha means nothing for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from erasediff_lora.adapter.kinds.base import Kind, Table

WEIGHT = "diff"
ALIASES = {"diff": WEIGHT, "w_norm": WEIGHT}
BIASES = frozenset(("diff_b", "b_norm"))


class _Full(Kind):
    title = "full differences"
    parts = marks = frozenset(ALIASES)
    has_magnitudes = False

    def shape(self, parts: Mapping[str, Table]) -> tuple[int, ...]:
        if len(parts) != 1 or WEIGHT not in parts:
            raise ValueError(f"it has {' and '.join(sorted(parts))}")
        shape = tuple(parts[WEIGHT].shape)
        if len(shape) not in (1, 2, 4) or 0 in shape:
            raise ValueError(f"its difference is {list(shape)}")
        return shape

    def rank(self, parts: Mapping[str, Table]) -> int | None:
        return None

    def rows(self, parts: Mapping[str, Any], first: int, last: int) -> Any:
        shape = parts[WEIGHT].shape
        return parts[WEIGHT][first:last].reshape(last - first, math.prod(shape[1:]))


KIND = _Full()
