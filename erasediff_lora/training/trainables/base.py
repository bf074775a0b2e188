"""What the training program asks of the part of the network that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor, nn

from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.objectives.base import GroupGradients
from erasediff_lora.recipe.tables import AdapterSettings


class Trainable(Protocol):
    """The trained parameters θ, which start at the base: the network predicts as before."""

    Settings: ClassVar[type[AdapterSettings]]

    settings: AdapterSettings

    modules: list[str]
    """Paths of what is trained."""

    parameters: list[nn.Parameter]

    group_gradients: GroupGradients | None
    """What finds gradients by group in one backward pass; None: nothing does."""

    @property
    def base_weights(self) -> list[Tensor]:
        """W of everything that θ changes."""
        ...

    def weight_changes(self) -> list[Tensor]:
        """ΔW, differentiable in θ; in the order of `base_weights`."""
        ...

    def set_change(self, path: str, translation: Tensor) -> float:
        """Let a linear layer change its weight W by W T, or by what comes nearest.

        Args:
            path: One of `modules`.
            translation: T, (in, in) float64, on the CPU.

        Returns:
            The share of the change's squares that is held.
        """
        ...

    def disabled(self) -> AbstractContextManager[None]:
        """The base network, for the time being."""
        ...

    def state(self) -> dict[str, Tensor]:
        """A copy of θ by name, on the CPU."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put what `state` returned back."""
        ...

    def save(self, folder: Path, provenance: Provenance) -> None:
        """Write θ as it is passed on."""
        ...

    @property
    def summary(self) -> str:
        """What is trained, in a few words."""
        ...
