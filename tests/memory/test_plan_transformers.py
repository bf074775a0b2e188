"""The plan of published transformers, from their configuration files alone, as for a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_configs import published

from erasediff_lora.denoisers import loading
from erasediff_lora.memory.plan import plan
from erasediff_lora.recipe import Recipe

GIB = 2**30
MOST = {
    "flux": ("flux_artist_style", 12),
    "flux_2_klein": ("flux_2_klein_artist_style", 8),
    "z_image": ("z_image_artist_style", 8),
    "qwen_image": ("qwen_image_artist_style", 24),
}
"""Family -> a shipped recipe, and GiB that are enough to train with it in 4 bits at 512 pixels."""


@pytest.mark.parametrize("family", MOST)
def test_it_trains_in_4_bits_on(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = published(family, tmp_path / "base")
    monkeypatch.setattr(loading, "device", lambda model: torch.device("cuda"))
    name, most = MOST[family]
    one = {"training.batch_size": 1, "training.gradient_accumulation": 1}  # as much as eight, one after the other
    changes = {"model.base": str(base), "model.quantize": "nf4", "sampling.resolution": 512, **one}
    recipe = Recipe.load(name, changes)
    found = plan(recipe, ["train"])
    print(family, f"{found.peak / GIB:.2f} GiB")
    assert found.peak / GIB <= most, {name: round(size / GIB, 2) for name, size in found["train"].parts.items()}
