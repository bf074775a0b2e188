"""The benches find what they import; what they measure is not run here."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
BENCHES = sorted(file.stem for file in SCRIPTS.rglob("bench_*.py"))


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_can_be_started(name: str) -> None:
    assert callable(importlib.import_module(name).main)


def test_a_script_finds_its_neighbours_when_it_is_run_by_its_path() -> None:
    """Python looks in the script's own folder, not in the folders beside it, as pytest is told to."""
    folders = {file.stem: file.parent for file in SCRIPTS.rglob("*.py")}
    for file in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert folders.get(name, file.parent) == file.parent, f"{file.name} imports {name}"


def test_the_front_is_drawn_from_published_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Means of all runs of a method; the robust preset at its first restart and, ringed, at its best."""
    front = importlib.import_module("plot_front")

    def run(mode: str, frechet: float, inversion: float | None) -> dict[str, Any]:
        found = {"frechet": frechet, "frechet_base": 40.0, "inversion": inversion}
        return {"entry": {"method": "erasediff", "mode": mode, "concept": "cat"}, "own_budget": found}

    methods = {"runs": [run("adapter", 42.0, 0.1), run("adapter", 46.0, 0.3), run("full", 50.0, None)]}
    attacks = {"inversion": {"tries": {"1": 0.025, "2": 0.05}}}
    cat = {"name": "cat", "frechet": {"erased": 41.0, "base": 40.0}, "attacks": attacks}
    robust = {"rows": [cat, cat | {"name": "car", "frechet": {"erased": 44.0, "base": 40.0}}]}
    assert front.methods_front(methods) == {("erasediff", "adapter"): (pytest.approx(1.1), pytest.approx(0.2))}
    points = front.robust_front(robust)
    assert points == [("cat", 1.025, 0.025, 0.05), ("car", 1.1, 0.025, 0.05)]
    assert front.mean_over(points, {"cat"}) == (1.025, 0.025), "the methods erased no car"
    methods["runs"].append(run("full", 60.0, 0.0))
    (tmp_path / "methods.json").write_text(json.dumps(methods))
    (tmp_path / "robust.json").write_text(json.dumps(robust))
    files = [str(tmp_path / name) for name in ("methods.json", "robust.json", "front.png")]
    monkeypatch.setattr(sys, "argv", ["plot_front.py", *files])
    front.main()
    assert Image.open(files[-1]).size[0] > 500
    assert capsys.readouterr().out == "not shown: erasediff, full at 1.50 times the base's Fréchet distance\n"
