"""The benches find what they import; what they measure is not run here."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
BENCHES = sorted(file.stem for file in SCRIPTS.glob("bench_*.py"))


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_can_be_started(name) -> None:
    assert callable(importlib.import_module(name).main)
