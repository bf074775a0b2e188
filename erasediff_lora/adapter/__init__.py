"""The adapter as a thing that people pass around: files, stacking, merging.

>>> from erasediff_lora import adapter
>>> erase = adapter.Weighted.read("runs/erase-cat", strength=0.8)
>>> adapter.merge("model.safetensors", [erase], "without_cat.safetensors")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erasediff_lora.adapter.checkpoint import Checkpoint, fingerprint
    from erasediff_lora.adapter.comparison import compare
    from erasediff_lora.adapter.extraction import extract
    from erasediff_lora.adapter.formats import describe, read, write
    from erasediff_lora.adapter.loading import load
    from erasediff_lora.adapter.merging import merge
    from erasediff_lora.adapter.provenance import Provenance
    from erasediff_lora.adapter.stacking import compress, interference, stack
    from erasediff_lora.adapter.weighted import Weighted
    from erasediff_lora.adapter.weights import LoraAdapter, LoraLayer, StoredAdapter
    from erasediff_lora.registry import FORMATS

_HOMES = {
    "FORMATS": "erasediff_lora.registry",
    "Checkpoint": "erasediff_lora.adapter.checkpoint",
    "LoraAdapter": "erasediff_lora.adapter.weights",
    "LoraLayer": "erasediff_lora.adapter.weights",
    "Provenance": "erasediff_lora.adapter.provenance",
    "StoredAdapter": "erasediff_lora.adapter.weights",
    "Weighted": "erasediff_lora.adapter.weighted",
    "compare": "erasediff_lora.adapter.comparison",
    "compress": "erasediff_lora.adapter.stacking",
    "describe": "erasediff_lora.adapter.formats",
    "extract": "erasediff_lora.adapter.extraction",
    "fingerprint": "erasediff_lora.adapter.checkpoint",
    "interference": "erasediff_lora.adapter.stacking",
    "load": "erasediff_lora.adapter.loading",
    "merge": "erasediff_lora.adapter.merging",
    "read": "erasediff_lora.adapter.formats",
    "stack": "erasediff_lora.adapter.stacking",
    "write": "erasediff_lora.adapter.formats",
}
"""Where each public name lives. It is imported when it is asked for, since most need torch and some do not."""

__all__ = [
    "FORMATS",
    "Checkpoint",
    "LoraAdapter",
    "LoraLayer",
    "Provenance",
    "StoredAdapter",
    "Weighted",
    "compare",
    "compress",
    "describe",
    "extract",
    "fingerprint",
    "interference",
    "load",
    "merge",
    "read",
    "stack",
    "write",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(globals().keys() | _HOMES.keys())
