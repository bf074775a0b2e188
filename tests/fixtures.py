"""Types of the fixtures in conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str


Cli = Callable[..., Result]
"""The command line: each argument as text."""

RecipeFile = Callable[..., Path]
"""Writes a tiny recipe, sections changed by keyword."""
