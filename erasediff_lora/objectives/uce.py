"""UCE: the closed form alone. It takes no step and no picture, and forgets names; see `adapter.closed_form`.

Gandikota et al.: Unified Concept Editing in Diffusion Models, 2024. The authors edit the base's own weights; their
change is of low rank, and an adapter holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from erasediff_lora.objectives.base import Batch, Direction, Objective, ObjectiveSettings


class UceSettings(ObjectiveSettings):
    """Options of the objective; those of the change are the adapter's, `start_preserve` and `start_ridge`."""

    closed_form: ClassVar[bool] = True

    name: Literal["uce"] = Field("uce", description="the method")
    preset: Literal["default"] = Field("default", description="starting point of the fields below")
    target: Literal["anchor", "random_anchor", "uncond"] = Field(
        "anchor", description="what the concept's words turn into: its anchor, the mean of all, or no words"
    )

    @property
    def anchors(self) -> Literal["named", "any"] | None:
        return {"anchor": "named", "random_anchor": "any"}.get(self.target)  # type: ignore[return-value]

    @property
    def wants_anchors(self) -> tuple[str, str]:
        return f"objective.target: {self.target}", "Name an anchor, or set objective.target: random_anchor or uncond."


class Uce(Objective):
    """The closed form is where the adapter starts and stays."""

    Settings = UceSettings

    @property
    def retain_target(self) -> None:
        """What is preserved is part of the closed form."""
        return

    def forget_target(self, batch: Batch) -> Tensor | None:
        return None

    def direction(self, forget: Sequence[Batch], retain: Sequence[Batch]) -> Direction:
        raise NotImplementedError("the closed form takes no steps")
