"""Inversion of the text encoder's output: tokens that no word has, learned on the erased model.

What hands embeddings to the network need not be a text encoder. An adapter that withstands every new word may still
answer to what no word can say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.attacks.inversion import Inversion, LearnedSettings
from erasediff_lora.recipe.adversary import searched_in
from erasediff_lora.registry import FAMILIES

if TYPE_CHECKING:
    from erasediff_lora.evaluation.attacks.restarts import Condition
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe import Recipe


class OutputInversionSettings(LearnedSettings):
    """Inversion of the text encoder's output: tokens that no word has, behind those of the whole prompt."""


class OutputInversion(Inversion):
    """As `inversion`, a layer further in."""

    Settings = OutputInversionSettings
    title = "Inversion of the encoder's output: tokens that no word has, learned from pictures of the concept"

    def space(self, evidence: Evidence, recipe: Recipe) -> str:
        return "outputs"

    def search_all(self, evidence: Evidence, candidate: Candidate, concept: str, restarts: int) -> list[Condition]:
        """Restart by restart.

        Raises:
            UserError: If the family has no text encoders, or `inversion` searches here for it already.
        """
        recipe = candidate.recipe
        if not FAMILIES[recipe.model.family].text_to_image:
            raise UserError(Problem("evaluation.attacks", self.name, "needs text encoders; this family has none."))
        if searched_in("auto", recipe.model) == "outputs":
            what = "is what inversion does for this family."
            raise UserError(Problem("evaluation.attacks", self.name, what, "Omit it."))
        return super().search_all(evidence, candidate, concept, restarts)
