"""The plan of published transformers, from their configuration files alone, as for a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import plan_table
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


def test_encoders_in_4_bits_draw_in_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's linear layers, by their number: 24 blocks of four times 4096 by 4096 and three times 4096 by 10240."""
    base = published("flux", tmp_path / "base")
    monkeypatch.setattr(loading, "device", lambda model: torch.device("cuda"))
    monkeypatch.setattr("erasediff_lora.denoisers.loading.find_spec", lambda name: object())
    changes = {
        "model.base": str(base),
        "model.quantize": "nf4",
        "sampling.resolution": 512,
        "sampling.batch_size": 1,
        "model.offload": False,
    }
    whole, small = (
        plan(Recipe.load("flux_artist_style", changes | {"model.quantize_encoders": kind}), ["draw"])["draw"]
        for kind in (None, "nf4")
    )
    t5 = 24 * (4 * 4096 * 4096 + 3 * 4096 * 10240)
    clip = 12 * (4 * 768 * 768 + 2 * 768 * 3072)
    assert whole.parts["weights"] - small.parts["weights"] == pytest.approx((t5 + clip) * (2 - 0.5625), rel=1e-3)


def test_the_table_of_cards_is_made_of_what_was_planned() -> None:
    rows = json.loads(plan_table.RESULTS.read_text())
    assert plan_table.table(rows) in plan_table.PAGE.read_text(), "run scripts/benchmarks/plan_table.py"
    for row in rows:
        assert row["changes"] is None or max(row["draw"], row["train"]) <= row["card"]


def test_what_the_table_says_of_a_small_card_is_what_is_planned(tmp_path: Path) -> None:
    name = "flux_2_klein_artist_style"
    rows = json.loads(plan_table.RESULTS.read_text())
    (row,) = (row for row in rows if (row["recipe"], row["card"]) == (name, 8))
    found = plan_table.planned(name, published("flux_2_klein", tmp_path / "base"), row["changes"])
    assert found == {phase: pytest.approx(row[phase], rel=0.02) for phase in ("draw", "train")}
