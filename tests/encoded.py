"""Sets of pictures as training gets them: prepared on the tiny base through a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tiny import tiny_values

from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.recipe import Recipe

Prepare = Callable[..., sets.EncodedSet]


def preparer(base: Path, root: Path) -> Prepare:
    """`prepare(kind, **sections)` on one base, loaded once."""
    loaded: list[Any] = []

    def prepare(kind: Literal["forget", "retain"] = "forget", **sections: Any) -> sets.EncodedSet:
        recipe = Recipe.parse(tiny_values(base, root, **sections))
        if not loaded:
            loaded.append(denoisers.load(recipe.model))
        return sets.prepare(recipe, loaded[0], kind)

    return prepare


def captions(data: sets.EncodedSet) -> list[str]:
    return [data.prompts[row] for row in data.captions.tolist()]


def anchors(data: sets.EncodedSet) -> list[str]:
    return [data.prompts[row[0]] for row in data.anchors.tolist()]


def shown(data: sets.EncodedSet) -> list[str | None]:
    """The concept of every picture."""
    return [data.names[index] if index >= 0 else None for index in data.concepts.tolist()]


def counts(found: dict[Any, Any]) -> dict[str, dict[str, int]]:
    """What a report has left out or noted, by name."""
    return {what.name: dict(examples) for what, examples in found.items()}


def noise(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of its own."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder_of(folder: Path, **pictures: Image.Image) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return folder


def class_folders(folder: Path, *names: str, each: int = 2) -> Path:
    """A folder a class, with pictures."""
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            noise(100 * index + number).save(folder / name / f"{number}.png")
    return folder
