"""What features are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.evaluation.loading import Rehearsed

BATCH = 32
Extract = Callable[[Sequence[Image.Image]], Tensor]
"""Pictures -> (N, D) float32."""


class Features(Rehearsed, Protocol):
    """A network whose features pictures are compared in. One file each, registered in `FEATURES`.

    A recipe names them as `NAME` or `NAME:WEIGHTS`. Of another package they are an entry point in the group
    `erasediff_lora.features`.
    """

    needs: ClassVar[str] = ""
    """What must follow the name, such as 'PATH'; empty if nothing must."""

    alone: ClassVar[bool] = False
    """Whether nothing may follow the name."""

    extra: ClassVar[str | None] = None
    """What `pip install` brings the packages that they need."""

    @classmethod
    @abstractmethod
    def load(cls, weights: str) -> Extract:
        """The features, ready to be computed.

        Args:
            weights: What follows the name in the recipe; may be empty.

        Raises:
            Exception: Whatever the loader raises; the user is told the field and the reason.
        """
        ...


def rehearsed(network: nn.Module, size: int) -> nn.Module:
    """A network of (B, 3, size, size), made to look at a batch; returned for those who count what stays."""
    with torch.no_grad():
        network.eval().requires_grad_(False)(torch.zeros(BATCH, 3, size, size))
    return network


def of_tensors(network: Callable[[Tensor], Tensor], size: int) -> Extract:
    """Features by a network of (B, 3, size, size) in [-1, 1] to (B, D)."""

    @torch.no_grad()
    def extract(images: Sequence[Image.Image]) -> Tensor:
        chunks = [
            network(torch.stack([to_unit_tensor(image, size) for image in images[start : start + BATCH]]))
            for start in range(0, len(images), BATCH)
        ]
        return torch.cat(chunks).float()

    return extract
