"""What a kind of update is: how the change of one weight, ΔW, is put together from the tensors in a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

CHUNK = 2**22
"""Values of ΔW in memory at a time where it is only looked at."""


class Table(Protocol):
    """What is known of a tensor before its values are: one in a file, or in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...


class Kind(ABC):
    """A kind of update, registered in `registry.KINDS` as an object.

    Parts are named as LyCORIS and kohya name them behind a module, such as 'hada_w1_a'. The arithmetic uses nothing
    but what numpy's arrays and torch's tensors have in common, so that a file can be looked at without torch.

    Attributes:
        title: What people call it.
        parts: All parts that it may have.
        marks: Parts of which any one tells that it is this kind.
        is_flat: Whether a kernel's height and width may be multiplied into the inputs, so that the shape of the
            weight is known only with the base.
        has_magnitudes: Whether there is a DoRA of it.
    """

    title: str
    parts: frozenset[str]
    marks: frozenset[str]
    is_flat: bool = False
    has_magnitudes: bool = True

    @abstractmethod
    def shape(self, parts: Mapping[str, Table]) -> tuple[int, ...]:
        """Shape of the changed tensor; flat kinds give (out, in · kh · kw).

        Raises:
            ValueError: If a part is missing, or they do not fit; it says which.
        """

    @abstractmethod
    def rank(self, parts: Mapping[str, Table]) -> int | None:
        """What alpha is divided by; None where alpha means nothing."""

    def prepared(self, parts: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parts, with what all rows have in common worked out."""
        return parts

    def factors(self, parts: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[Any, Any] | None:
        """A and B before scaling, from prepared parts, where the kind is LoRA in effect; None: it is not."""
        return None

    def squared_norm(self, parts: Mapping[str, Any], shape: tuple[int, ...]) -> float:
        """‖ΔW‖² (Frobenius) before scaling, from prepared arrays of numpy."""
        return sum(float((self.rows(parts, *ends) ** 2).sum()) for ends in chunks(shape))

    @abstractmethod
    def rows(self, parts: Mapping[str, Any], first: int, last: int) -> Any:
        """Rows of ΔW before scaling, (last − first, columns), from prepared parts."""


def chunks(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of which each has `CHUNK` values at the most, or is one row."""
    stride = max(1, CHUNK // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], stride):
        yield first, min(first + stride, shape[0])


def require(parts: Mapping[str, Table], *names: str, ndim: int | tuple[int, ...] = 2) -> None:
    """Stop unless all of these parts are there and are matrices, or have one of these numbers of dimensions.

    Raises:
        ValueError: If one is missing or is not.
    """
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    for name in names:
        if name not in parts:
            raise ValueError(f"{name} is missing")
        if parts[name].ndim not in allowed or 0 in parts[name].shape:
            raise ValueError(f"{name} is {list(parts[name].shape)}")


def core(tensor: Any, inner: Any) -> Any:
    """Tucker's core (r, s, kh, kw) with its second dimension expanded by (s, in): (r, in · kh · kw)."""
    rank, middle, *kernel = tensor.shape
    expanded = inner.T @ tensor.reshape(rank, middle, math.prod(kernel))  # (r, in, kh · kw)
    return expanded.reshape(rank, inner.shape[1] * math.prod(kernel))
