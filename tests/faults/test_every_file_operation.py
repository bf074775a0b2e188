"""SIGKILL before a file operation, whichever: a resumed run ends as one that nobody stopped, bit for bit.

A few operations of each run are tried here; ERASEDIFF_EVERY_OPERATION=1 tries all, as scripts/benchmarks/bench_kills.py
does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from bench_kills import RUNS, Bench
from tiny import tiny_classifier, tiny_values

ALL = bool(os.environ.get("ERASEDIFF_EVERY_OPERATION"))
SAMPLE = {"plain": 6, "robust": 4, "evaluating": 4, "shared": 2}
"""Run -> operations that are tried of it, spread evenly."""


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed(name: str, tiny_base: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = RUNS[name]
    if name == "evaluating":
        judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"])
        sections = sections | {"evaluation": {"judge": f"transformers:{judge}", "strength_sweep": {"samples": 2}}}
    bench = Bench(name, tiny_values(tiny_base, tmp_path, **sections), tmp_path / "bench")
    assert bench.operations > 50
    count = bench.operations if ALL else SAMPLE[name]
    points = sorted({1 + round(n * (bench.operations - 1) / max(1, count - 1)) for n in range(count)})
    wrong = [outcome for at in points if (outcome := bench.killed_at(at)).problems]
    assert not wrong
