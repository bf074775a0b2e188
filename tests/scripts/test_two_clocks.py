"""The benchmark with two clocks, on a tiny base: what it stops at, keeps, and calls missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bench_two_clocks as bench
import pytest
import torch
import yaml
from tiny import tiny_base_recipe

from erasediff_lora.evaluation.judges.classifier import Classifier


@pytest.fixture
def clocks(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.manual_seed(0)
    Classifier(["cat", "dog", "car"], [], 16).save(tmp_path / "judge.safetensors")
    evaluation = {"judge": f"classifier:{tmp_path / 'judge.safetensors'}", "forget_samples": 2, "retain_samples": 2}
    evaluation |= {"inversion": {"steps": 1, "restarts": 1, "samples": 2, "batch_size": 2}}
    file = tiny_base_recipe(tiny_base, tmp_path, evaluation=evaluation)
    for name, value in {"SCHEDULE": [1, 2], "ATTACKED": [2, 3], "ATTACKS": ["inversion"], "LOOKED_AT": 2}.items():
        monkeypatch.setattr(bench, name, value)

    def run(*options: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["bench", str(file), "--runs", str(tmp_path / "runs"), *options])
        bench.main()
        return json.loads((tmp_path / "runs/two_clocks.json").read_text())

    return run


def test_both_clocks_stop_and_what_is_there_is_read(
    clocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "REACHED", 0.0)
    monkeypatch.setattr(bench, "WITHIN", 1.0)
    monkeypatch.setattr(bench, "BROUGHT_BACK", 1.0)
    report = clocks("--contenders", "erasediff", "uce")
    rows = {row["contender"]: row for row in report["summary"]}
    assert set(rows) == {"erasediff, from zero", "erasediff, from the closed form", "uce, from zero"}
    assert (rows["erasediff, from zero"]["forgotten_steps"], rows["erasediff, from zero"]["robust_steps"]) == (1, 2)
    assert rows["uce, from zero"]["forgotten_steps"] == 0 and rows["uce, from zero"]["robust_seconds"] < 5
    assert all(row["missing"] == 0 for row in rows.values())
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*/clocks.json")}
    assert len(before) == 3
    capsys.readouterr()
    later = clocks("--contenders", "erasediff", "uce", "spm", "--seconds", "0")
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*/clocks.json")}
    assert [row["missing"] for row in later["summary"]] == [0, 0, 0, 1, 1]
    assert "| spm, from zero | 0 | – | – | 1 |" in capsys.readouterr().out


def test_a_concept_that_stays_is_never_attacked(clocks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REACHED", 2.0)
    (row, _) = clocks("--contenders", "erasediff")["summary"]
    assert (row["runs"], row["forgotten"], row["robust"], row["forgotten_seconds"]) == (1, 0, 0, None)


def test_every_contender_is_a_recipe() -> None:
    from bench_methods import Entry

    from erasediff_lora.recipe import Recipe
    from erasediff_lora.recipe.yaml_io import overlay, read_yaml

    root = Path(__file__).parent.parent.parent
    values = read_yaml(root / "recipes/demo_concept.yaml")
    for name, configuration in yaml.safe_load(bench.CONTENDERS.read_text()).items():
        method = configuration.pop("method", name)
        entry = Entry(method, "adapter", "cat", 0, configuration)
        assert Recipe.parse(overlay(values, entry.overrides(values, Path("out")))).objective.name == method
