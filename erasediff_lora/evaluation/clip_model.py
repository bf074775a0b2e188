"""A CLIPModel with its processor: embeddings of pictures and of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from erasediff_lora.evaluation.loading import loading, local

BATCH = 32


class Clip(nn.Module):
    """Embeddings in CLIP's joint space, as tensors whatever the version of transformers returns.

    Args:
        weights: Folder or hub id of a CLIPModel with its processor.
        field: The recipe's field that names it, for messages.
        given: What stands there.

    Raises:
        UserError: If it cannot be loaded.
    """

    def __init__(self, weights: str, field: str, given: str) -> None:
        from transformers import CLIPModel, CLIPProcessor

        super().__init__()
        with loading(field, given):
            self.model: Any = CLIPModel.from_pretrained(local(weights)).eval()
            self.processor: Any = CLIPProcessor.from_pretrained(local(weights))
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


def _tensor(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output
