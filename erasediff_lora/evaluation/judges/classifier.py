"""A small classifier that names the concept, and the style if it knows any, of a picture.

`demo` is the one of the embedded model; `classifier:FILE` is another file that `Classifier.save` wrote.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from erasediff_lora import demo
from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.evaluation.judges.base import Judge, Names
from erasediff_lora.evaluation.loading import loading
from erasediff_lora.storage.files import save_safetensors

AT_ONCE = 32
"""Pictures that it is shown together."""


class Classifier(nn.Module):
    """Convolutional classifier with a concept head and a style head over shared features.

    Args:
        concepts: Concept names, in the order of the concept logits.
        styles: Style names, in the order of the style logits; may be empty.
        size: Side of the pictures that it sees, in pixels.
        widths: Channels of each level; each level halves the side.
        depth: Convolutions a level; more names to tell apart take more.
    """

    def __init__(
        self,
        concepts: list[str],
        styles: list[str],
        size: int = 64,
        widths: Sequence[int] = (32, 64, 128, 192),
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.concepts = concepts
        self.styles = styles
        self.size = size
        self.widths = list(widths)
        self.depth = depth
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise([3, *widths]):
            convolutions = [nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1)]
            convolutions += [nn.Conv2d(wide, wide, kernel_size=3, padding=1) for _ in range(depth - 1)]
            for convolution in convolutions:
                layers += [convolution, nn.BatchNorm2d(wide), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Dropout2d(0.1), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.concept_head = nn.Linear(widths[-1] * 4, len(concepts))
        self.style_head = nn.Linear(widths[-1] * 4, len(styles)) if styles else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return concept logits (B, concepts) and style logits (B, styles), None if there are no styles.

        Args:
            pixels: (B, 3, size, size) float in [-1, 1].
        """
        features = self.features(pixels)
        return self.concept_head(features), None if self.style_head is None else self.style_head(features)

    @torch.no_grad()
    def classify(self, images: list[Image.Image]) -> list[tuple[str, ...]]:
        """Name the most likely concept, and style, of each picture."""
        if not images:
            return []
        self.eval()
        concepts, styles = self(torch.stack([to_unit_tensor(image, self.size) for image in images]))
        columns = [[self.concepts[index] for index in concepts.argmax(dim=1).tolist()]]
        if styles is not None:
            columns.append([self.styles[index] for index in styles.argmax(dim=1).tolist()])
        return list(zip(*columns, strict=True))

    def save(self, path: Path) -> None:
        """Write the weights as float16 safetensors, the names in the header."""
        state = {
            name: value.half().contiguous() if value.is_floating_point() else value
            for name, value in self.state_dict().items()
        }
        metadata = {name: json.dumps(getattr(self, name)) for name in ("concepts", "styles", "size", "widths", "depth")}
        save_safetensors(state, path, metadata)

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read what `save` wrote, in float32 and evaluation mode."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            network = cls(**{name: json.loads(text) for name, text in metadata.items()})
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return network.float().eval()


def rehearse(path: Path) -> Classifier:
    """As `Judge.rehearse`, by what the file's header says."""
    with safe_open(path, framework="pt") as file:
        network = Classifier(**{name: json.loads(text) for name, text in file.metadata().items()}).eval()
    with torch.no_grad():
        network(torch.zeros(AT_ONCE, 3, network.size, network.size))
    return network


class ClassifierJudge(Judge):
    """Such a classifier as a judge.

    Args:
        path: Its file.
    """

    needs = "FILE"

    @classmethod
    def load(cls, weights: str, names: Names) -> ClassifierJudge:
        return cls(Path(weights))

    @classmethod
    def rehearse(cls, weights: str) -> Classifier:
        return rehearse(Path(weights).expanduser())

    @classmethod
    def features(cls, weights: str) -> str:
        return f"judge:{weights}"

    def __init__(self, path: Path) -> None:
        with loading("evaluation.judge", f"classifier:{path}"):
            self.network = Classifier.load(path.expanduser())

    @property
    def labels(self) -> set[str]:
        return {*self.network.concepts, *self.network.styles}

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        return [set(names) for names in self.network.classify(images)]


class DemoJudge(ClassifierJudge):
    """The classifier of the embedded model."""

    needs, alone = "", True

    @classmethod
    def load(cls, weights: str, names: Names) -> DemoJudge:
        return cls(demo.JUDGE_FILE)

    @classmethod
    def rehearse(cls, weights: str) -> Classifier:
        return rehearse(demo.JUDGE_FILE)

    @classmethod
    def features(cls, weights: str) -> str:
        return "judge"
