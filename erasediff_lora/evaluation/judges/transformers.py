"""Any image classifier that transformers loads, those of timm among them."""

from __future__ import annotations

import torch
from PIL import Image

from erasediff_lora.evaluation.judges.base import Judge, Names
from erasediff_lora.evaluation.loading import loading, local


class TransformersJudge(Judge):
    """The most likely class, under each of its names: 'tench, Tinca tinca' is recognised by either.

    Args:
        weights: Folder or hub id of an image classification model with its processor.
    """

    needs = "FOLDER"

    @classmethod
    def load(cls, weights: str, names: Names) -> TransformersJudge:
        return cls(weights)

    @classmethod
    @torch.no_grad()
    def rehearse(cls, weights: str) -> object:
        from transformers import AutoConfig, AutoModelForImageClassification

        config = AutoConfig.from_pretrained(local(weights))
        network = AutoModelForImageClassification.from_config(config).eval()
        size = getattr(config, "image_size", 224)
        network(pixel_values=torch.zeros(32, 3, *(size if isinstance(size, list | tuple) else (size, size))))
        return network

    def __init__(self, weights: str) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        with loading("evaluation.judge", f"transformers:{weights}"):
            self._model = AutoModelForImageClassification.from_pretrained(local(weights)).eval()
            self._processor = AutoImageProcessor.from_pretrained(local(weights))
        self._names = [names_of(label) for _, label in sorted(self._model.config.id2label.items())]

    @property
    def labels(self) -> set[str]:
        return set().union(*self._names)

    @torch.no_grad()
    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        seen: list[set[str]] = []
        for start in range(0, len(images), 32):
            batch = [image.convert("RGB") for image in images[start : start + 32]]
            logits = self._model(**self._processor(images=batch, return_tensors="pt")).logits
            seen += [self._names[index] for index in logits.argmax(dim=1).tolist()]
        return seen


def names_of(label: str) -> set[str]:
    """The synonyms in a label, as they are and in lower case."""
    names = {name.strip() for name in label.split(",")}
    return names | {name.lower() for name in names}
