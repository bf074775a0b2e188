"""The adapter as a thing that people pass around: files, stacking, merging.

>>> from erasediff_lora import adapter
>>> erase = adapter.Weighted.read("runs/erase-cat", strength=0.8)
>>> adapter.merge("model.safetensors", [erase], "without_cat.safetensors")
"""

from erasediff_lora.adapter.checkpoint import Checkpoint, fingerprint
from erasediff_lora.adapter.extraction import extract
from erasediff_lora.adapter.formats import read, write
from erasediff_lora.adapter.loading import load
from erasediff_lora.adapter.merging import max_difference, merge
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.stacking import compress, interference, stack
from erasediff_lora.adapter.weighted import Weighted
from erasediff_lora.adapter.weights import LoraAdapter, LoraLayer
from erasediff_lora.registry import FORMATS

__all__ = [
    "FORMATS",
    "Checkpoint",
    "LoraAdapter",
    "LoraLayer",
    "Provenance",
    "Weighted",
    "compress",
    "extract",
    "fingerprint",
    "interference",
    "load",
    "max_difference",
    "merge",
    "read",
    "stack",
    "write",
]
