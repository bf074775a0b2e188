"""The adapter on other bases of its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.survival.base import Hardship, Pictures, pictures_of
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate, Candidates
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.evaluation import Evaluation

FIELD = "evaluation.other_base.bases"


class OtherBaseSettings(Section):
    """Bases that others made of the one that the adapter was trained on."""

    bases: list[str] = Field(default_factory=list, description="folders, files or hub ids of bases of the same family")


class OtherBase(Hardship):
    """A variant is a base."""

    Settings = OtherBaseSettings
    title = "On another base: one that was made of the adapter's own"

    def available(self, evaluation: Evaluation) -> bool:
        return bool(evaluation.settings(OtherBaseSettings).bases)

    def require_means(self, evaluation: Evaluation) -> None:
        if not evaluation.settings(OtherBaseSettings).bases:
            raise UserError(Problem(FIELD, None, "names no other base.", "List folders, files or hub ids."))

    def variants(self, evidence: Evidence) -> Sequence[str]:
        return list(evidence.settings(OtherBaseSettings).bases)

    def draw(self, evidence: Evidence, candidate: Candidate, variants: Sequence[str]) -> dict[str, Pictures]:
        found = {}
        for base in variants:
            candidates = _on(evidence, base)
            own = candidates.erased if candidate.strength else candidates.base
            found[base] = pictures_of(evidence, replace(own, name=f"{own.name}, on {base}"))
        return found

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        from erasediff_lora.recipe.evaluation import without_folders

        found = super().measure(evidence)
        return found | {"variants": {without_folders(name): value for name, value in found["variants"].items()}}


def _on(evidence: Evidence, base: str) -> Candidates:
    """The same models on another base.

    Raises:
        UserError: If it cannot be loaded, or the adapter does not fit it.
    """
    from erasediff_lora.evaluation.candidates import load_candidates

    recipe, erasure = evidence.recipe, evidence.candidates.erased.erasure
    if erasure is not None and not erasure.is_adapter:
        what = "takes an adapter, and what is evaluated holds weights of a model."
        raise UserError(Problem(FIELD, base, what, "Leave survival by other_base out."))
    options = recipe.evaluation.model_copy(update={"never_learned": None})
    other = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": base}), "evaluation": options})
    try:
        return load_candidates(other, evidence.candidates.file)
    except UserError as error:
        raise UserError(*(replace(problem, field=FIELD) for problem in error.problems)) from error
