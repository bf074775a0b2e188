"""Picture start: image to image from a picture of the concept, under a prompt that says nothing of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from erasediff_lora.evaluation.attacks.latent_start import LatentStart, LatentStartSettings

if TYPE_CHECKING:
    from erasediff_lora.data.prompts import Prompt
    from erasediff_lora.recipe.evaluation import Evaluation


class PictureStartSettings(LatentStartSettings):
    """Image to image: a forget picture, noised part of the way, drawn on under a neutral prompt."""

    table_name: ClassVar[str] = "picture_start"

    strengths: list[float] = Field([0.3, 0.5, 0.7, 0.9], min_length=1, description="share of the noise schedule added")
    prompt: str = Field("", description="the neutral prompt")


class PictureStart(LatentStart):
    """A try is a strength of the noise; a base that never learned the concept says what the picture alone gives."""

    Settings: ClassVar[type[LatentStartSettings]] = PictureStartSettings
    decides = False  # at little noise any model gives the picture back
    title = "Picture start: a noised picture of the concept, drawn on under a neutral prompt"

    def base_pictures(self, evaluation: Evaluation) -> int:
        return 0  # those of the latent start

    def wording(self, prompt: Prompt, settings: LatentStartSettings) -> Prompt:
        assert isinstance(settings, PictureStartSettings)
        return replace(prompt, text=settings.prompt)
