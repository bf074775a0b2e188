"""Judges: classifiers that say what a picture shows. A new one is a line in JUDGES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from PIL import Image

from erasediff_lora import demo
from erasediff_lora.demo.judge import Judge


class PictureJudge(Protocol):
    """Names what it recognises in each picture; `labels` is all that it could name."""

    @property
    def labels(self) -> set[str]: ...

    def recognise(self, images: list[Image.Image]) -> list[set[str]]: ...


class DemoJudge:
    """The demo's classifier: a concept and a style for every picture."""

    def __init__(self) -> None:
        self._network = Judge.load(demo.JUDGE_FILE)

    @property
    def labels(self) -> set[str]:
        return {*self._network.concepts, *self._network.styles}

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        return [set(names) for names in self._network.classify(images)] if images else []


JUDGES: dict[str, Callable[[], PictureJudge]] = {"demo": DemoJudge}
