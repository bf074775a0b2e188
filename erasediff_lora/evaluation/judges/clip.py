"""CLIP as a zero-shot classifier."""

from __future__ import annotations

import torch
from PIL import Image
from torch.nn import functional as F

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.judges.base import Names, loading

PROMPT = "a picture of {}"


class ClipJudge:
    """Names, in each group, the label whose text lies closest to the picture.

    Args:
        weights: Folder or hub id of a CLIPModel with its processor.
        names: The labels, in groups of which one is right.
    """

    def __init__(self, weights: str, names: Names) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self._groups = names.groups
        if not self._groups:
            raise UserError(
                Problem(
                    "evaluation.judge", f"clip:{weights}", "has nothing to choose between.", "List retain.concepts."
                )
            )
        with loading("evaluation.judge", f"clip:{weights}"):
            self._model = CLIPModel.from_pretrained(weights).eval()
            self._processor = CLIPProcessor.from_pretrained(weights)
        self._texts = [
            F.normalize(self._features(text=[PROMPT.format(label) for label in group], padding=True), dim=1)
            for group in self._groups
        ]

    @property
    def labels(self) -> set[str]:
        return {label for group in self._groups for label in group}

    @torch.no_grad()
    def _features(self, **inputs: object) -> torch.Tensor:
        encoded = self._processor(return_tensors="pt", **inputs)
        features = self._model.get_text_features if "text" in inputs else self._model.get_image_features
        found = features(**encoded)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        if not images:
            return []
        seen: list[set[str]] = [set() for _ in images]
        for start in range(0, len(images), 32):
            batch = [image.convert("RGB") for image in images[start : start + 32]]
            pictures = F.normalize(self._features(images=batch), dim=1)
            for group, texts in zip(self._groups, self._texts, strict=True):
                for index, best in enumerate((pictures @ texts.T).argmax(dim=1).tolist()):
                    seen[start + index].add(group[best])
        return seen
