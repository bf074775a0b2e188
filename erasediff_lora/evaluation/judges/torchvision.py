"""torchvision's ImageNet classifiers."""

from __future__ import annotations

import torch
from PIL import Image

from erasediff_lora.evaluation.judges.base import Judge, Names
from erasediff_lora.evaluation.loading import loading


class TorchvisionJudge(Judge):
    """The most likely ImageNet class.

    Args:
        weights: `MODEL`, with the weights that torchvision downloads, or `MODEL:FILE`.
    """

    needs = "resnet50"

    @classmethod
    def load(cls, weights: str, names: Names) -> TorchvisionJudge:
        return cls(weights)

    @classmethod
    @torch.no_grad()
    def rehearse(cls, weights: str) -> object:
        from torchvision.models import get_model

        network = get_model(weights.partition(":")[0], weights=None).eval()
        network(torch.zeros(32, 3, 224, 224))
        return network

    def __init__(self, weights: str) -> None:
        name, _, file = weights.partition(":")
        with loading("evaluation.judge", f"torchvision:{weights}", "torchvision"):
            from torchvision.models import get_model, get_model_weights

            known = get_model_weights(name).DEFAULT
            self._model = get_model(name, weights=None if file else known)
            if file:
                self._model.load_state_dict(torch.load(file, weights_only=True))
        self._model.eval()
        self._transform = known.transforms()
        self._names: list[str] = known.meta["categories"]

    @property
    def labels(self) -> set[str]:
        return set(self._names)

    @torch.no_grad()
    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        seen: list[set[str]] = []
        for start in range(0, len(images), 32):
            batch = torch.stack([self._transform(image.convert("RGB")) for image in images[start : start + 32]])
            seen += [{self._names[index]} for index in self._model(batch).argmax(dim=1).tolist()]
        return seen
