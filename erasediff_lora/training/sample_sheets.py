"""A sheet of pictures from time to time, drawn with the adapter as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from erasediff_lora.denoisers import Denoiser
from erasediff_lora.evaluation.pictures import generate_prompts, prompt_sheet
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.hooks import Hook


@dataclass
class SampleSheets(Hook):
    """Draws forget and retain prompts.

    Attributes:
        recipe: The prompts.
        denoiser: With the adapter in training.
        every: Steps from one sheet to the next.
    """

    recipe: Recipe
    denoiser: Denoiser
    every: int

    def after_saving(self, done: int) -> None:
        """Draw, if it is time."""
        if done % self.every == 0:
            with network_at_rest(self.denoiser):
                prompt_sheet(generate_prompts(self.denoiser, self.recipe), self._file(done))

    def sheets(self, done: int) -> dict[str, Path]:
        return {"samples": self._file(done)} if done % self.every == 0 else {}

    def make_up(self, done: int) -> None:
        """Draw what was due when the run was stopped."""
        if not self._file(done).exists():
            self.after_saving(done)

    def _file(self, done: int) -> Path:
        return self.recipe.output / "samples" / f"step-{done:06d}.png"


@contextmanager
def network_at_rest(denoiser: Denoiser) -> Iterator[None]:
    """The network as it draws pictures, with the encoders for the time being."""
    denoiser.network.eval()
    yield
    denoiser.release_encoders()
    denoiser.network.train()
