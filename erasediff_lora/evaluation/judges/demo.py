"""The embedded model's own classifier."""

from __future__ import annotations

from PIL import Image

from erasediff_lora import demo
from erasediff_lora.demo.judge import Judge


class DemoJudge:
    """A concept and a style for every picture."""

    def __init__(self) -> None:
        self.network = Judge.load(demo.JUDGE_FILE)

    @property
    def labels(self) -> set[str]:
        return {*self.network.concepts, *self.network.styles}

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        return [set(names) for names in self.network.classify(images)] if images else []
