"""A playground of tiny runs, served from this process."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from erasediff_lora.cli.recipe_flags import load_recipe


@contextmanager
def playground(*runs: Path) -> Iterator[str]:
    """Its address."""
    from erasediff_lora.playground.server import start

    page, address = start(load_recipe(runs[0], []), list(runs), port=0)
    try:
        yield address
    finally:
        page.close(verbose=False)


def needs(package: str) -> Any:
    """The package, or a skip; where PLAY=1 says that it is there, a failure."""
    if os.environ.get("PLAY"):
        return importlib.import_module(package)
    return pytest.importorskip(package, reason=f"needs {package}: make test-play")
