"""The embedded model with what erases nothing, and a base that draws noise: nobody says yes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import random_adapter
from fixtures import Cli
from safetensors.torch import load_file, save_file

from erasediff_lora import demo
from erasediff_lora.adapter import LoraAdapter, formats

ROOT = Path(__file__).parent.parent.parent
ATTACKS = "[paraphrases, inversion]"
FEW = {
    "sampling.batch_size": 40, "evaluation.metrics": "[accuracy]", "evaluation.attacks": ATTACKS,
    "evaluation.paraphrases.samples": 4, "evaluation.inversion.samples": 4, "evaluation.inversion.restarts": 1,
    "evaluation.inversion.steps": 1,
}  # fmt: skip


@pytest.fixture
def judged(cli: Cli, tmp_path: Path) -> Any:
    """`judged(adapter, field=value, …)`: the claims of an evaluation by the demo's recipe."""

    def judge(adapter: LoraAdapter, **fields: Any) -> dict[str, Any]:
        formats.write(adapter, tmp_path / "adapter.safetensors", "kohya")
        given = {name.replace("__", "."): value for name, value in fields.items()}
        flags = [word for name, value in (FEW | given).items() for word in (f"--{name}", value)]
        recipe = ROOT / "recipes/demo_concept.yaml"
        result = cli(
            "evaluate", tmp_path / "adapter.safetensors", "--recipe", recipe, "--cache", tmp_path / "cache", *flags
        )
        assert result.status == 0, result.err
        claims = json.loads((tmp_path / "adapter-evaluation/evaluation.json").read_text())["verdict"]
        return {claim["claim"]: claim for claim in claims}

    return judge


def test_an_adapter_of_zeros_erases_nothing(judged: Any) -> None:
    adapter = random_adapter(demo.MODEL_DIR)
    zeros = {name: replace(layer, up=torch.zeros_like(layer.up)) for name, layer in adapter.layers.items()}
    claims = judged(
        LoraAdapter(zeros, adapter.provenance),
        sampling__steps=8, evaluation__forget_samples=8, evaluation__retain_samples=12,
    )  # fmt: skip
    assert claims["erased"]["holds"] is False and "still seen in" in claims["erased"]["text"]
    assert claims["kept"]["holds"] is None, "nothing changed, but of 12 pictures nobody can tell"
    assert "0 are right without the adapter only, 0 with it only" in claims["kept"]["text"]
    assert claims["robust"]["holds"] is not True


def test_of_a_base_that_draws_noise_nothing_is_told(judged: Any, tmp_path: Path) -> None:
    base = tmp_path / "noise"
    shutil.copytree(demo.MODEL_DIR, base)
    file = base / "unet/diffusion_pytorch_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(value.shape, generator=generator) * 0.05).to(value.dtype)
        for name, value in load_file(file).items()
    }
    save_file(weights, file)
    claims = judged(
        random_adapter(base),
        model__base=base, sampling__steps=2, evaluation__forget_samples=80, evaluation__retain_samples=24,
    )  # fmt: skip
    assert [claims[name]["holds"] for name in ("erased", "kept", "robust")] == [None, None, None]
    assert "its absence tells nothing" in claims["erased"]["text"]
    assert "The base itself does not draw what it is asked for" in claims["kept"]["text"]
