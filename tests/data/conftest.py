"""Preparing sets on one loaded base."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoded import Prepare, preparer


@pytest.fixture
def prepare(tiny_base: Path, tmp_path: Path) -> Prepare:
    return preparer(tiny_base, tmp_path)
