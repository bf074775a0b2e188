"""A CLIPModel with its processor: embeddings of pictures and of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from erasediff_lora.errors import UserError
from erasediff_lora.evaluation import open_clip
from erasediff_lora.evaluation.loading import loading, local

BATCH = 32


class Clip(nn.Module):
    """Embeddings in CLIP's joint space, as tensors whatever the version of transformers returns.

    Args:
        weights: Folder or hub id of a CLIPModel with its processor, or a folder in open_clip's layout.
        field: The recipe's field that names it, for messages.
        given: What stands there.

    Raises:
        UserError: If it cannot be loaded.
    """

    def __init__(self, weights: str, field: str, given: str) -> None:
        from transformers import CLIPModel, CLIPProcessor

        super().__init__()
        place = local(weights)
        with loading(field, given):
            self.model: Any
            self.processor: Any
            if open_clip.is_open_clip(place):
                with _called(field, given):
                    self.model, self.processor = open_clip.load(Path(place))
            else:
                self.model = CLIPModel.from_pretrained(place).eval()
                self.processor = CLIPProcessor.from_pretrained(place)
        self.config = self.model.config

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W), prepared by the processor -> (N, D)."""
        return _tensor(self.model.get_image_features(pixel_values=pixel_values))

    @torch.no_grad()
    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) -> (N, D)."""
        return _tensor(self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures -> (N, D)."""
        chunks = []
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            chunks.append(self.get_image_features(self.processor(images=batch, return_tensors="pt").pixel_values))
        return torch.cat(chunks)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D)."""
        encoded = self.processor(text=list(texts), return_tensors="pt", padding=True, truncation=True)
        return self.get_text_features(encoded.input_ids, encoded.attention_mask)


@contextmanager
def _called(field: str, given: str) -> Iterator[None]:
    """Say of which field a complaint is."""
    try:
        yield
    except UserError as error:
        raise UserError(*(replace(problem, field=field, value=given) for problem in error.problems)) from error


@torch.no_grad()
def rehearse(weights: str) -> object:
    """As `Judge.rehearse`: the embeddings of a batch of pictures."""
    from transformers import CLIPConfig, CLIPModel

    config: Any = CLIPConfig.from_pretrained(local(weights))
    network = CLIPModel(config).eval()
    side = config.vision_config.image_size
    network.get_image_features(pixel_values=torch.zeros(BATCH, 3, side, side))
    return network


def _tensor(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output
