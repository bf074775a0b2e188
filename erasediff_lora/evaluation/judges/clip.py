"""CLIP as a zero-shot classifier."""

from __future__ import annotations

from PIL import Image
from torch.nn import functional as F

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.clip_model import Clip, rehearse
from erasediff_lora.evaluation.judges.base import Judge, Names

PROMPT = "a picture of {}"


class ClipJudge(Judge):
    """Names, in each group, the label whose text lies closest to the picture.

    Args:
        weights: Folder or hub id of a CLIPModel with its processor.
        names: The labels, in groups of which one is right.

    Raises:
        UserError: If the model cannot be loaded, or there is nothing to choose between.
    """

    needs = "FOLDER"

    @classmethod
    def load(cls, weights: str, names: Names) -> ClipJudge:
        return cls(weights, names)

    @classmethod
    def rehearse(cls, weights: str) -> object:
        return rehearse(weights)

    def __init__(self, weights: str, names: Names) -> None:
        given = f"clip:{weights}"
        self._groups = names.groups
        if len({*names.forget, *names.retain}) < 2:
            raise UserError(
                Problem("evaluation.judge", given, "has nothing to choose between.", "List retain.concepts.")
            )
        self._clip = Clip(weights, "evaluation.judge", given)
        self._texts = [
            F.normalize(self._clip.texts([PROMPT.format(label) for label in group]), dim=1) for group in self._groups
        ]

    @property
    def labels(self) -> set[str]:
        return {label for group in self._groups for label in group}

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        if not images:
            return []
        pictures = F.normalize(self._clip.images(images), dim=1)
        best = [(pictures @ texts.T).argmax(dim=1).tolist() for texts in self._texts]
        return [{group[i] for group, i in zip(self._groups, row, strict=True)} for row in zip(*best, strict=True)]
