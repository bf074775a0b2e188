"""A tiny base of the family that a module names as FAMILY, made by its PIPELINE."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_base_recipe

from erasediff_lora import denoisers
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.recipe import Model


@pytest.fixture(scope="module")
def base(request: Any, tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp(request.module.FAMILY) / "base"
    request.module.PIPELINE().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def denoiser(request: Any, base: Path) -> Denoiser:
    return denoisers.load(Model(base=str(base), family=request.module.FAMILY))


@pytest.fixture
def recipe(request: Any, base: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(**sections: Any) -> Path:
        model = {"base": str(base), "family": request.module.FAMILY}
        return tiny_base_recipe(base, tmp_path, **({"model": model} | sections))

    return write
