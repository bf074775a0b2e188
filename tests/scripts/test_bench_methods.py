"""The head-to-head benchmark on a tiny base: what it runs, keeps, and concludes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bench_methods
import methods_table
import pytest
import torch
import yaml
from tiny import tiny_base_recipe

from erasediff_lora.evaluation.judges.classifier import Classifier


@pytest.fixture
def bench(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.manual_seed(0)
    Classifier(["cat", "dog", "car"], [], 16).save(tmp_path / "judge.safetensors")
    search = {"steps": 2, "restarts": 1, "samples": 2, "batch_size": 2}
    evaluation = {
        "judge": f"classifier:{tmp_path / 'judge.safetensors'}", "forget_samples": 2, "retain_samples": 4,
        "strength_sweep": {"samples": 2}, "inversion": search,
    }  # fmt: skip
    file = tiny_base_recipe(tiny_base, tmp_path, evaluation=evaluation)
    monkeypatch.setattr(bench_methods, "SCHEDULE", [1, 3])
    monkeypatch.setattr(bench_methods, "TUNING_STEPS", 2)

    def run(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["bench_methods.py", str(file), "--runs", str(tmp_path / "runs"), *options])
        bench_methods.main()
        return json.loads((tmp_path / "runs/methods.json").read_text())

    return run


def test_tune_run_and_read_again(bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = bench("--tune", "cat", "--methods", "saliency", "--modes", "adapter")["tuning"]
    listed = yaml.safe_load(bench_methods.CONFIGURATIONS.read_text())["adapter"]["saliency"]
    assert [row["entry"]["configuration"] for _, row in sorted(tuned.items())] == listed
    assert all(row["own_budget"]["steps"] == 2 for row in tuned.values())

    options = ("--concepts", "cat", "dog", "--methods", "erasediff", "saliency", "--modes", "adapter", "full")
    report = bench(*options)
    assert len(report["runs"]) == 8
    for row in report["runs"]:
        assert row["own_budget"]["steps"] == 4 and "inversion" in row["own_budget"]
        entry = row["entry"]
        ours = next(
            other for other in report["runs"]
            if (other["entry"]["method"], other["entry"]["mode"], other["entry"]["concept"])
            == ("erasediff", "adapter", entry["concept"])
        )  # fmt: skip
        if row is not ours:
            assert row["equal_time"]["processor_seconds"] >= ours["own_budget"]["processor_seconds"]
    by_mode = {(line["method"], line["mode"]): line for line in report["summary"]}
    adapter, full = by_mode["erasediff", "adapter"], by_mode["erasediff", "full"]
    assert adapter["runs"] == 2 and full["training_bytes"] > 10 * adapter["training_bytes"]
    assert by_mode["saliency", "adapter"]["preparation_seconds"] > 0 == adapter["preparation_seconds"]
    assert (tmp_path / "runs/methods.png").stat().st_size > 1000

    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*/bench.json")}
    capsys.readouterr()
    bench(*options)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*/bench.json")}
    assert "| erasediff | adapter | 2 |" in capsys.readouterr().out


def test_every_method_has_as_many_configurations_as_ours() -> None:
    table = yaml.safe_load(bench_methods.CONFIGURATIONS.read_text())
    assert {len(configurations) for methods in table.values() for configurations in methods.values()} == {5}


def test_a_folder_of_another_configuration_is_run_again(bench: Any, tmp_path: Path) -> None:
    options = ("--concepts", "cat", "--methods", "erasediff", "--modes", "adapter")
    bench(*options)
    file = tmp_path / "runs/erasediff-adapter-cat-0/bench.json"
    stored = json.loads(file.read_text())
    configuration = stored["entry"]["configuration"]
    stored["entry"]["configuration"] = {"training.learning_rate": 7.0}
    file.write_text(json.dumps(stored))
    bench(*options)
    assert json.loads(file.read_text())["entry"]["configuration"] == configuration


def row(method: str, forgotten: float, kept: float, attacked: float, reached: float | None = 1.0) -> dict[str, Any]:
    point = {
        "unlearning_accuracy": forgotten, "retain_accuracy": kept, "inversion": attacked, "frechet": 1.0,
        "processor_seconds": 9.0, "artifact_bytes": 1,
    }  # fmt: skip
    return {
        "entry": {"method": method, "mode": "adapter", "configuration": {}}, "own_budget": point,
        "reached": None if reached is None else {"processor_seconds": reached},
    }  # fmt: skip


def test_the_front_and_the_means() -> None:
    """Dominated means worse in all three; what never reached the accuracy does not count into its mean time."""
    rows = {
        "a": [row("a", 1.0, 0.9, 0.2, 2.0), row("a", 1.0, 1.0, 0.4, None)],
        "b": [row("b", 0.9, 0.9, 0.5)],
        "c": [row("c", 0.9, 1.0, 0.5)],
    }
    a, b, c = (methods_table.summarise(name, "adapter", group) for name, group in rows.items())
    assert (a["retain_accuracy"], a["inversion"]) == (0.95, pytest.approx(0.3))
    assert (a["reached"], a["runs"], a["seconds_to_reach"]) == (1, 2, 2.0)
    assert methods_table.dominates(a, b) and not methods_table.dominates(a, c) and not methods_table.dominates(b, a)


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ([(0.8, 1.0, 1.0), (0.96, 0.97, 5.0), (1.0, 0.97, 3.0)], 2),  # keeping all is nothing without forgetting
        ([(1.0, 0.98, 9.0), (1.0, 0.965, 3.0)], 1),  # a difference of noise: the faster
        ([(1.0, 0.98, 9.0), (1.0, 0.95, 3.0)], 0),
        ([(0.8, 1.0, None), (0.9, 0.5, None)], 1),
        ([], 0),
    ],
)
def test_the_best_configuration_forgets_then_keeps_then_is_fast(tmp_path: Path, found: Any, best: int) -> None:
    for number, (forgotten, kept, reached) in enumerate(found):
        folder = tmp_path / "tuning" / f"a-adapter-{number}"
        folder.mkdir(parents=True)
        (folder / "bench.json").write_text(json.dumps(row("a", forgotten, kept, 0, reached)))
    assert bench_methods.tuned(tmp_path, "a", "adapter", len(found)) == best
