"""What needs a graphics card: `make test-gpu` runs these, and everywhere else they are skipped."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import Cli
from safetensors.torch import load_file

from erasediff_lora.cli.running import DEMO_RECIPE, demo_overrides
from erasediff_lora.memory.plan import plan
from erasediff_lora.recipe import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no usable card; see make test-gpu"),
]
SHORT = (
    *("--forget.count", "8", "--retain.count", "9", "--sampling.steps", "2"),
    *("--evaluation.forget_samples", "8", "--evaluation.retain_samples", "9"),
)


def erase(cli: Cli, folder: Path, *words: object) -> dict[str, torch.Tensor]:
    """A few steps of the demo on the card, evaluated there; the adapter, which is finite and not what it began as."""
    where = ("--model.device", "cuda", "--output", folder, "--cache", folder.parent / "cache")
    result = cli("demo", *where, *SHORT, "--training.steps", 3, *words)
    assert result.status == 0, result.err
    found = load_file(folder / "adapter_model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    assert any(bool(tensor.any()) for name, tensor in found.items() if "lora_B" in name)
    environment = json.loads((folder / "evaluation.json").read_text())["environment"]
    assert environment["device"].startswith("cuda")
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("--model.dtype", "float32"),
        ("--model.dtype", "float16"),
        ("--model.dtype", "bfloat16"),
        ("--training.optimizer", "adamw8bit"),
        ("--training.optimizer", "paged_adamw8bit", "--training.gradient_checkpointing", "true"),
        ("--model.quantize", "nf4", "--model.dtype", "bfloat16"),
        ("--model.quantize", "int8", "--model.dtype", "float16"),
        ("--training.compile", "true"),
        ("--model.offload", "true", "--training.channels_last", "true"),
        ("--adapter.dora", "true"),
        ("--adapter.kind", "none", "--training.learning_rate", "0.0001"),
        ("--preset", "robust", "--adversary.refresh_every", "1", "--adversary.steps", "2"),
        ("--objective.name", "uce", "--training.steps", "0"),
        ("--adapter.start", "closed_form"),
        ("--training.gradient_accumulation", "4"),
        ("--training.gradient_accumulation", "auto"),
        ("--training.one_pass", "true"),
    ],
    ids=lambda words: "-".join(word.removeprefix("--").rpartition(".")[2] for word in words),
)
def test_a_run_in_every_way(words: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    for package in ("optimizer", "quantize"):
        if any(package in word for word in words):
            pytest.importorskip("bitsandbytes")
    if "none" in words:
        where = ("--model.device", "cuda", "--output", tmp_path / "run", "--cache", tmp_path / "cache")
        assert cli("demo", *where, *SHORT, "--training.steps", 3, *words).status == 0
    else:
        erase(cli, tmp_path / "run", *words)


def test_it_goes_on_where_it_stopped_and_does_the_same(cli: Cli, tmp_path: Path) -> None:
    whole = erase(cli, tmp_path / "whole", "--training.steps", 4)
    erase(cli, tmp_path / "halves", "--training.steps", 2)
    halves = erase(cli, tmp_path / "halves", "--training.steps", 4, "--resume")
    for name, tensor in whole.items():
        torch.testing.assert_close(halves[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_card_that_is_too_small_takes_the_batch_in_parts(cli: Cli, tmp_path: Path) -> None:
    """With room for a quarter of the batch, as the plan has it, and no plan asked."""
    words = {"model.device": "cuda", "training.batch_size": 256, "training.gradient_accumulation": 4}
    planned = plan(Recipe.load(DEMO_RECIPE, demo_overrides("cat") | words), ["train"])
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(planned.peak / torch.cuda.get_device_properties(0).total_memory)
    try:
        where = ("--model.device", "cuda", "--output", tmp_path / "run", "--cache", tmp_path / "cache")
        batch = ("--training.batch_size", 256, "--training.gradient_accumulation", "auto")
        result = cli("demo", *where, *SHORT, "--training.steps", 2, "--sampling.batch_size", 4, *batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.status == 0, result.err
    assert "memory ran out with one micro-batch: auto goes on with" in result.err


def test_attacks_and_judges_of_the_card(cli: Cli, tmp_path: Path) -> None:
    attacks: dict[str, Any] = {"inversion": {"restarts": 1, "steps": 2, "samples": 4}}
    attacks["latent_start"] = {"strengths": [0.6], "samples": 4}
    settings = [word for name, value in attacks.items() for word in (f"--evaluation.{name}", json.dumps(value))]
    erase(cli, tmp_path / "run", "--evaluation.attacks", "[inversion, latent_start]", *settings)
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["attacks"].keys() == attacks.keys()


@pytest.mark.parametrize("preset", ["plain", "robust"])
def test_the_plan_holds(preset: str, cli: Cli, tmp_path: Path) -> None:
    """What torch took at its peak, training and drawing, is no more than the plan says beside the card's context."""
    words = {"model.device": "cuda", "preset": preset, "output": str(tmp_path / "run")}
    planned = plan(Recipe.load(DEMO_RECIPE, demo_overrides("cat") | words))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    erase(cli, tmp_path / "run", "--preset", preset, "--forget.count", 64, "--retain.count", 162)
    assert torch.cuda.max_memory_allocated() <= planned.peak
