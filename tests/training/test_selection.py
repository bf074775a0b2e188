"""The trainer keeps the best of the adapters that it evaluates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fixtures import Cli, RecipeFile
from safetensors.torch import load_file
from tiny import tiny_classifier

from erasediff_lora.training.selection import best_row


def row(step: int, unlearned: float, retained: float, floor: float = 0.9) -> dict[str, float]:
    return {"step": step, "unlearning_accuracy": unlearned, "retain_accuracy": retained, "floor": floor}


def test_the_rule() -> None:
    assert best_row([row(1, 0.5, 0.99), row(2, 0.9, 0.91), row(3, 1.0, 0.89)])["step"] == 2, "above the floor only"
    assert best_row([row(1, 1.0, 0.95), row(2, 1.0, 0.97), row(3, 1.0, 0.97)])["step"] == 2, "retention, then order"
    assert best_row([row(1, 1.0, 0.9)])["step"] == 1, "the floor itself will do"
    assert best_row([row(1, 1.0, 0.1)]) is None and best_row([]) is None


def asked(judge: Any, **changes: Any) -> Any:
    options = {"judge": f"transformers:{judge}", "metrics": ["accuracy"], "strength_sweep": {"samples": 4}}
    return {
        "evaluation": options | changes,
        "training": {"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 9, "evaluate_every": 2},
    }


def test_the_best_adapter_is_what_is_saved(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """A judge that sees dogs everywhere finds all adapters equal, so the first is kept."""
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    result = cli("train", recipe_file(**asked(judge)))
    assert result.status == 0, result.err
    run = tmp_path / "run"
    rows = json.loads((run / "selection.json").read_text())
    assert [(r["step"], r["unlearning_accuracy"], r["retain_accuracy"], r["floor"]) for r in rows] == [
        (step, 1.0, 0.5, 0.95 * 0.5) for step in (2, 4, 6)
    ]
    saved, early, last = (
        load_file(run / name)
        for name in (
            "adapter_model.safetensors",
            "checkpoints/step-000002/adapter.safetensors",
            "checkpoints/step-000006/adapter.safetensors",
        )
    )
    assert all(saved[f"base_model.model.{name}"].equal(tensor) for name, tensor in early.items())
    assert not all(saved[f"base_model.model.{name}"].equal(tensor) for name, tensor in last.items())
    assert "the adapter of step 2 is kept" in result.err
    assert "Adapters evaluated while training" in (run / "report.html").read_text()


def test_without_one_above_the_floor_the_last_is_saved(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    file = recipe_file(**asked(judge))
    assert cli("train", file).status == 0
    run = tmp_path / "run"
    rows = json.loads((run / "selection.json").read_text())
    (run / "selection.json").write_text(json.dumps([r | {"floor": 0.9} for r in rows]))
    result = cli("train", file, "--resume", "--training.steps", "8")
    assert result.status == 0, result.err
    assert "no adapter kept 90.0% of the retain pictures; the last one is saved" in result.err
    saved = load_file(run / "adapter_model.safetensors")
    last = load_file(run / "checkpoints/step-000008/adapter.safetensors")
    assert all(saved[f"base_model.model.{name}"].equal(tensor) for name, tensor in last.items())


def test_evaluating_does_not_disturb_the_training(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    assert cli("train", recipe_file(**asked(judge))).status == 0
    plain = recipe_file(training={"steps": 6, "checkpoint_every": 2})
    assert cli("train", plain, "--output", tmp_path / "plain").status == 0
    one, other = (load_file(tmp_path / run / "checkpoints/step-000006/adapter.safetensors") for run in ("run", "plain"))
    assert all(one[name].equal(other[name]) for name in one)
