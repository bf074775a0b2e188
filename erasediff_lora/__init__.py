"""Concept erasure for diffusion models as a distributable LoRA adapter.

>>> from erasediff_lora import Recipe, train, evaluate, adapter
>>> recipe = Recipe.load("demo_concept", {"output": "runs/cat"})
>>> folder = train(recipe)
>>> evaluate(recipe, folder, folder)["verdict"]
>>> adapter.merge("model.safetensors", [adapter.Weighted.read(folder)], "without_cat.safetensors")
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Read when these libraries are imported, so set before any of them is.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from erasediff_lora import adapter
    from erasediff_lora.evaluation.evaluate import evaluate
    from erasediff_lora.recipe import Recipe
    from erasediff_lora.training.loop import train

_PUBLIC = {
    "Recipe": "erasediff_lora.recipe:Recipe",
    "adapter": "erasediff_lora.adapter",
    "evaluate": "erasediff_lora.evaluation.evaluate:evaluate",
    "train": "erasediff_lora.training.loop:train",
}
"""Imported when asked for: torch and what builds on it take seconds."""

__all__ = ["Recipe", "__version__", "adapter", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
