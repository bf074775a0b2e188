"""An objective that needs what no batch holds, and a layout of data, of another package: no line of ours changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from fixtures import RecipeFile
from pydantic import Field
from torch import Tensor

from erasediff_lora.data import layouts
from erasediff_lora.data.extras import Drawn, Extra
from erasediff_lora.data.layouts import Labelled
from erasediff_lora.memory.plan import plan
from erasediff_lora.objectives import Batch, ObjectiveSettings
from erasediff_lora.objectives.base import WeightedSum
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import EXTRAS, LAYOUTS, OBJECTIVES
from erasediff_lora.registry.lookup import Registry
from erasediff_lora.training.loop import train


class GreySettings(ObjectiveSettings):
    name: Literal["grey"] = Field("grey", description="the method")
    preset: Literal["default"] = Field("default", description="starting point of the fields below")
    retain_weight: float = Field(1.0, description="weight of the retain loss")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("mean_picture",)


class Grey(WeightedSum):
    Settings = GreySettings
    curves = WeightedSum.curves | {"greyness": "greyness"}

    def forget_target(self, batch: Batch) -> Tensor | None:
        return batch.extras["mean_picture"]


class MeanPicture(Extra):
    def __call__(self, drawn: Drawn) -> dict[str, Tensor]:
        return {"mean_picture": self.forget.latents[:].mean(dim=0).expand_as(drawn.latents)}


class Arrays:
    marker = "train.npz"

    @staticmethod
    def read(folder: Path, split: str) -> Labelled:
        stored = np.load(folder / f"{split}.npz")
        return Labelled(stored["pixels"], stored["labels"], ["cat", "dog"])


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def add(registry: Registry, **parts: Any) -> None:
        points = {
            name: EntryPoint(name, f"{__name__}:{part.__name__}", f"erasediff_lora.{registry.kind}")
            for name, part in parts.items()
        }
        monkeypatch.setitem(vars(registry), "_plugins", points)
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))

    return add


def test_an_objective_brings_what_it_needs(
    install: Callable[..., None], recipe_file: RecipeFile, tmp_path: Path
) -> None:
    install(OBJECTIVES, grey=Grey)
    install(EXTRAS, mean_picture=MeanPicture)
    recipe = Recipe.load(recipe_file()).model_copy(update={"objective": GreySettings()})
    assert plan(recipe)["train"].parts["activations"] > 0
    train(recipe)
    lines = [json.loads(line) for line in (tmp_path / "run/training_log.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(line["forget_loss"] > 0 for line in lines)


def test_a_layout_is_found_by_its_file(install: Callable[..., None], tmp_path: Path) -> None:
    install(LAYOUTS, arrays=Arrays)
    np.savez(tmp_path / "train.npz", pixels=np.zeros((3, 8, 8, 1), np.uint8), labels=np.array([0, 1, 1]))
    assert layouts.find(tmp_path) == "arrays"
    assert layouts.read(tmp_path).labels.tolist() == [0, 1, 1]
