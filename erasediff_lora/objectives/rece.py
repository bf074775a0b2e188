"""RECE: the closed form, and against what still finds the concept the closed form again, by turns.

Gong et al.: Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models, 2024. In each round tokens are
searched for, in closed form too, that the changed layers read as they read the concept's before; they are sent where
the concept's go. It takes no step and no picture.

Rounds and ridge are the authors' for objects (CharlesGong12/RECE, train_object.py), who also have `start_preserve` and
`start_ridge` at 0.1, and the empty prompt in the concept's place.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from erasediff_lora.objectives.uce import Uce, UceSettings


class ReceSettings(UceSettings):
    """Options of the objective; those of the change are the adapter's, `start_preserve` and `start_ridge`."""

    name: Literal["rece"] = Field("rece", description="the method")  # type: ignore[assignment]
    rounds: int = Field(5, ge=1, description="rounds of a search and a further change")
    search_ridge: float = Field(1e-3, gt=0, description="what keeps the tokens that are found small")

    @property
    def closed_form_search(self) -> tuple[int, float]:
        return self.rounds, self.search_ridge


class Rece(Uce):
    """The closed form, and its rounds, are where the adapter starts and stays."""

    Settings = ReceSettings
