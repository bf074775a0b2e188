"""LoRA of a kernel with a Tucker core between its factors (LyCORIS' `use_tucker`): LoRA of the same rank, in effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erasediff_lora.adapter.kinds.base import Kind, Table, core, require

DOWN, UP, MIDDLE = "lora_down.weight", "lora_up.weight", "lora_mid.weight"


class _Tucker(Kind):
    title = "LoRA with a Tucker core"
    parts = frozenset((DOWN, UP, MIDDLE))
    marks = frozenset((MIDDLE,))

    def shape(self, parts: Mapping[str, Table]) -> tuple[int, ...]:
        require(parts, DOWN, UP, ndim=(2, 4))
        require(parts, MIDDLE, ndim=4)
        down, up, middle = (tuple(parts[name].shape) for name in (DOWN, UP, MIDDLE))
        if middle[:2] != (up[1], down[0]) or {1} != {1, *down[2:], *up[2:]}:
            raise ValueError(f"{MIDDLE} is {list(middle)}, {UP} {list(up)} and {DOWN} {list(down)}")
        return (up[0], down[1], *middle[2:])

    def rank(self, parts: Mapping[str, Table]) -> int | None:
        return int(parts[DOWN].shape[0])

    def prepared(self, parts: Mapping[str, Any]) -> Mapping[str, Any]:
        down, up = (parts[name].reshape(parts[name].shape[:2]) for name in (DOWN, UP))
        return {DOWN: core(parts[MIDDLE], down), UP: up}

    def factors(self, parts: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Any, Any] | None:
        down, up = parts[DOWN], parts[UP]
        return down.reshape(len(down), *shape[1:]), up.reshape(*up.shape, 1, 1)

    def rows(self, parts: Mapping[str, Any], first: int, last: int) -> Any:
        return parts[UP][first:last] @ parts[DOWN]


KIND = _Tucker()
