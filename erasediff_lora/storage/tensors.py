"""Safetensors files, tensor by tensor: what each one is, and its values for numpy or torch once they are asked for.

Neither the file's list of tensors nor numpy's values need torch, whose import takes longer than reading an adapter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from erasediff_lora.storage.files import open_safetensors

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""Safetensors' names of dtypes that weights may have -> torch's."""
INTEGERS = {
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
}
"""The same of dtypes that a single number may have too."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        path: The file.
        dtype: Safetensors' name of the dtype, such as 'F16'.
        shape: As stored.
        start: Offset of its first byte from the beginning of the file.
        end: Offset behind its last one.
        is_swapped: Whether the two halves of its rows lie the other way round.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    is_swapped: bool = False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def is_number(self) -> bool:
        """Whether it is one number."""
        return self.count == 1 and (self.is_float or self.dtype in INTEGERS)

    @property
    def dtype_name(self) -> str:
        """Torch's name of the dtype, such as 'float16', or safetensors' if it is no float."""
        return FLOATS.get(self.dtype, self.dtype)

    def shared(self, shares: Sequence[int]) -> list[StoredTensor]:
        """Its rows, shared out in units, as tensors of their own."""
        height, *rest = self.shape
        unit, step = height // sum(shares), (self.end - self.start) // sum(shares)
        found, begin = [], self.start
        for share in shares:
            found.append(replace(self, shape=(unit * share, *rest), start=begin, end=begin + step * share))
            begin += step * share
        return found

    def data(self) -> bytearray:
        """Its bytes."""
        data = bytearray(self.end - self.start)
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            stream.readinto(data)
        half = len(data) // 2
        return data[half:] + data[:half] if self.is_swapped else data

    def tensor(self) -> Tensor:
        """Its values in their own dtype, which must be a float."""
        import torch

        dtype = getattr(torch, FLOATS[self.dtype])
        data = self.data()
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(self.shape)

    def array(self) -> NDArray[Any]:
        """Its values, which must be floats or integers; dtypes that numpy does not have come in float32."""
        data = self.data()
        if self.dtype == "BF16":  # the upper half of a float32
            values: NDArray[Any] = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "F8_E5M2":  # the upper half of a float16
            values = (np.frombuffer(data, np.uint8).astype(np.uint16) << 8).view(np.float16)
        elif self.dtype == "F8_E4M3":
            values = _e4m3()[np.frombuffer(data, np.uint8)]
        else:
            values = np.frombuffer(data, FLOATS.get(self.dtype) or INTEGERS[self.dtype])
        return values.reshape(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file, of which the header alone has been read.

    Attributes:
        path: The file.
        tensors: By name, in the order of their places in the file.
        metadata: Of the header.
    """

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def open_tensors(path: Path, field: str) -> TensorFile:
    """Read a safetensors file's header.

    Args:
        path: The file.
        field: What the user calls it, for the message.

    Raises:
        UserError: If there is no such file, or it is a pickle, damaged, or no safetensors file.
    """
    open_safetensors(path, field, framework="np")  # checks the header against the file's size
    with path.open("rb") as stream:
        begin = 8 + int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(begin - 8))
    metadata = header.pop("__metadata__", None) or {}
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    tensors = {
        name: StoredTensor(path, e["dtype"], tuple(e["shape"]), *(begin + offset for offset in e["data_offsets"]))
        for name, e in entries
    }
    return TensorFile(path, tensors, metadata)


def all_finite(values: Tensor) -> bool:
    """Whether none is NaN or infinite. The sum tells in a third of the time, unless it is too large for the dtype."""
    return math.isfinite(values.sum()) or (values.numel() > 0 and all(math.isfinite(end) for end in values.aminmax()))


def _e4m3() -> NDArray[np.float32]:
    """What each byte means: a sign, four bits of exponent with bias 7, three of fraction; all ones are NaN."""
    byte = np.arange(256)
    exponent, fraction = byte >> 3 & 15, byte & 7
    magnitude = np.where(exponent, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    magnitude[byte & 127 == 127] = np.nan
    return np.where(byte >> 7, -magnitude, magnitude).astype(np.float32)
