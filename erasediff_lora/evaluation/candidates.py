"""Models under evaluation: the base, the base with the adapter at some strength, one that never learned the concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from erasediff_lora import denoisers
from erasediff_lora.data.prompts import Prompt
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.denoisers.side_by_side import drawing_threads
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.erasures import Erasure, digest, load_erasure
from erasediff_lora.evaluation.picture_store import PictureStore
from erasediff_lora.evaluation.pictures import Drawn, Paint, generate, painter
from erasediff_lora.recipe import Model, Recipe

NEVER_LEARNED = "evaluation.never_learned"


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation.

    Attributes:
        name: 'base', 'erased', 'never learned', or 'erased at STRENGTH'.
        recipe: For the sampling.
        denoiser: The model; several candidates share one and set the strength of its erasure.
        store: Of its pictures.
        erasure: What is loaded on the model, if anything is.
        strength: Of the erasure; 0 switches it off.
    """

    name: str
    recipe: Recipe
    denoiser: Denoiser = field(repr=False)
    store: PictureStore = field(repr=False)
    erasure: Erasure | None = field(default=None, repr=False)
    strength: float = 0.0

    @contextmanager
    def active(self) -> Iterator[Denoiser]:
        """The denoiser with the erasure at this candidate's strength, for whoever only looks on."""
        if self.erasure is not None:
            self.erasure.merge(self.strength)
        yield self.denoiser

    @contextmanager
    def in_layers(self) -> Iterator[Denoiser]:
        """The same for whoever alters the model: an adapter is in layers of its own, the weights are the base's."""
        if self.erasure is not None:
            self.erasure.set_strength(self.strength)
        yield self.denoiser

    def generate(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        label: str,
        *,
        paint: Paint | None = None,
        variant: dict[str, Any] | None = None,
    ) -> list[Drawn]:
        """One picture a prompt, from the store where they are there.

        Args:
            prompts: What to draw.
            seed: Of the first picture; the others count on.
            label: For the progress bar.
            paint: Draws in place of the plain prompts.
            variant: What the pictures depend on besides, if `paint` is given.
        """
        store = self.store if variant is None else replace(self.store, depends=self.store.depends | variant)
        with self.active() as denoiser:
            threads = drawing_threads(denoiser) if paint is None else 1
            paint = paint or painter(denoiser)
            return generate(paint, self.recipe, prompts, seed, f"{label}, {self.name}", store, threads)


@dataclass(frozen=True)
class Candidates:
    """All models of an evaluation.

    Attributes:
        base: Without the adapter.
        erased: With it, at strength 1.
        never_learned: The floor of the attacks, if there is one.
        file: Of the adapter, or of the trained weights.
    """

    base: Candidate
    erased: Candidate
    never_learned: Candidate | None
    file: Path

    def at(self, strength: float) -> Candidate:
        """The base with the adapter at another strength."""
        if strength in (0, 1):
            return self.erased if strength else self.base
        depends = self.erased.store.depends | {"strength": strength}
        return replace(
            self.erased,
            name=f"erased at {strength:g}",
            strength=strength,
            store=replace(self.erased.store, depends=depends),
        )

    def attacked(self) -> list[Candidate]:
        """Those that an attack is run on: the erased model, the ceiling, and the floor."""
        return [self.erased, self.base, *([self.never_learned] if self.never_learned else [])]


def load_candidates(recipe: Recipe, adapter: Path) -> Candidates:
    """Load the base and the erasure; an adapter with plain diffusers, as a user of the adapter would.

    Args:
        recipe: Names the base and how to draw.
        adapter: From `erasures.locate`: an adapter of any format, the trained weights of a run without one, or a model
            of another eraser.

    Raises:
        UserError: If the base or the adapter cannot be loaded, or do not fit each other.
    """
    denoiser = denoisers.load(_whole(recipe.model))
    erasure = load_erasure(denoiser, adapter)
    never = None
    if (other := locate_never_learned(recipe)) is not None:
        with _called(NEVER_LEARNED):
            _ = other.pipeline
        never = Candidate("never learned", recipe, other, PictureStore.of(recipe, other, None))
    return Candidates(
        Candidate("base", recipe, denoiser, PictureStore.of(recipe, denoiser, None), erasure, 0.0),
        Candidate("erased", recipe, denoiser, PictureStore.of(recipe, denoiser, digest(adapter)), erasure, 1.0),
        never,
        adapter,
    )


def locate_never_learned(recipe: Recipe) -> Denoiser | None:
    """The base that never learned the concept, its weights not read yet; None if the recipe names none.

    Raises:
        UserError: If it is not there.
    """
    base = recipe.evaluation.never_learned
    if base is None:
        return None
    with _called(NEVER_LEARNED):
        return denoisers.load(_whole(recipe.model.model_copy(update={"base": base})))


def _whole(model: Model) -> Model:
    """Without offloading: attacks differentiate through all networks at once."""
    return model.model_copy(update={"offload": False})


@contextmanager
def _called(field: str) -> Iterator[None]:
    """Say of which field a complaint is."""
    try:
        yield
    except UserError as error:
        raise UserError(*(replace(problem, field=field) for problem in error.problems)) from error
