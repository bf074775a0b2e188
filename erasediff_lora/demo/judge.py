"""The demo's judge: a small classifier that names the concept and the style of a picture."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from erasediff_lora.imaging import to_unit_tensor

IMAGE_SIZE = 64


class Judge(nn.Module):
    """Convolutional classifier with a concept head and a style head over shared features.

    Args:
        concepts: Concept names, in the order of the concept logits.
        styles: Style names, in the order of the style logits.
    """

    def __init__(self, concepts: list[str], styles: list[str]) -> None:
        super().__init__()
        self.concepts = concepts
        self.styles = styles
        widths = [3, 32, 64, 128, 192]
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(narrow, wide, kernel_size=4, stride=2, padding=1),
                nn.BatchNorm2d(wide),
                nn.SiLU(),
            ]
        self.features = nn.Sequential(*layers, nn.Dropout2d(0.1), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.concept_head = nn.Linear(widths[-1] * 4, len(concepts))
        self.style_head = nn.Linear(widths[-1] * 4, len(styles))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return concept logits (B, concepts) and style logits (B, styles).

        Args:
            pixels: (B, 3, 64, 64) float in [-1, 1].
        """
        features = self.features(pixels)
        return self.concept_head(features), self.style_head(features)

    @torch.no_grad()
    def classify(self, images: list[Image.Image]) -> list[tuple[str, str]]:
        """Name the most likely (concept, style) of each picture."""
        self.eval()
        pixels = torch.stack([to_unit_tensor(image, IMAGE_SIZE) for image in images])
        concept_logits, style_logits = self(pixels)
        return [
            (self.concepts[concept], self.styles[style])
            for concept, style in zip(
                concept_logits.argmax(dim=1).tolist(), style_logits.argmax(dim=1).tolist(), strict=True
            )
        ]

    def save(self, path: Path) -> None:
        """Write the weights as float16 safetensors, the names in the header."""
        state = {
            name: value.half().contiguous() if value.is_floating_point() else value
            for name, value in self.state_dict().items()
        }
        save_file(state, path, metadata={"concepts": json.dumps(self.concepts), "styles": json.dumps(self.styles)})
        path.chmod(0o644)

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Read a judge written by `save`, in float32 and evaluation mode."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            judge = cls(json.loads(metadata["concepts"]), json.loads(metadata["styles"]))
            judge.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return judge.float().eval()
