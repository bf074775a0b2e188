"""Files that are in no format's spelling throughout: those of other programs, and folders with a file for each part."""

from __future__ import annotations

from collections.abc import Mapping

from erasediff_lora.adapter.formats import peft, reading
from erasediff_lora.adapter.formats.diffusers import header_config
from erasediff_lora.adapter.formats.reading import NOTHING, Asked, Part
from erasediff_lora.adapter.weights import StoredAdapter
from erasediff_lora.storage.tensors import TensorFile


def read(stored: TensorFile, asked: Asked = NOTHING) -> StoredAdapter:
    """Read a file by what each of its names says."""
    return reading.read([Part(stored, config=header_config(stored))], asked)


def read_all(files: Mapping[str, TensorFile], asked: Asked = NOTHING) -> StoredAdapter:
    """Read one file for each component of a pipeline."""
    return reading.read([_part(stored, component) for component, stored in files.items()], asked)


def _part(stored: TensorFile, component: str) -> Part:
    if stored.path.name == peft.FILE:
        return peft.part_of(stored, component)
    has_own = any(key.startswith(f"{component}.") for key in stored.tensors)
    return Part(
        stored,
        None if has_own else component,
        {component: header_config(stored).get("", {})} if not has_own else header_config(stored),
    )
