"""Guidance and negative prompts: what a user of the model can turn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from erasediff_lora.errors import Problem
from erasediff_lora.evaluation.attacks.base import (
    Attack,
    Looked,
    Outcome,
    best,
    concept_prompts,
    looked_at,
    of_each_concept,
)
from erasediff_lora.evaluation.parts import Work, out_of_range
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.data.prompts import Prompt
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn
    from erasediff_lora.recipe.checks import Sections
    from erasediff_lora.recipe.evaluation import Evaluation

AWAY = "away from the anchor"


class GuidanceSettings(Section):
    """Other guidance, and what took the concept's place as negative prompt."""

    scales: list[float] = Field([1.0, 2.0, 7.5, 15.0], min_length=1, description="guidance scales that are tried")
    negative: bool = Field(True, description="also with the anchor as negative prompt, at the recipe's guidance")
    samples: int = Field(30, ge=1, description="pictures drawn for each")

    def check(self, sections: Sections) -> list[Problem]:
        return out_of_range("evaluation.guidance_attack.scales", self.scales, 0, 100)


class GuidanceAttack(Attack):
    """A try is a guidance scale, or the anchor as negative prompt: what came in the concept's place is pushed away."""

    Settings = GuidanceSettings
    title = "Guidance: other scales, and what came in the concept's place as negative prompt"
    searches = False

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        options = evaluation.settings(GuidanceSettings)
        return super().work(evaluation, concepts).times(len(options.scales) + options.negative)

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(GuidanceSettings)
        scales = ", ".join(f"{scale:g}" for scale in options.scales)
        more = ", and the anchor as negative prompt" * options.negative
        return f"scales {scales}{more}, {options.samples} pictures{of_each_concept(evidence)} each"

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        judge, options = evidence.require_judge("guidance"), evidence.settings(GuidanceSettings)
        tries: dict[str, list[Looked]] = {}
        for concept in evidence.forgotten:
            prompts = concept_prompts(evidence, concept, options.samples)
            for scale in options.scales:
                own = [replace(prompt, guidance=scale) for prompt in prompts]
                drawn = candidate.generate(own, evidence.spare_seed, f"guidance {scale:g}")
                tries.setdefault(f"{scale:g}", []).extend(looked_at(judge, drawn))
            anchor = next(one.anchor for one in evidence.recipe.forget.concepts if one.name == concept)
            if options.negative and anchor:
                drawn = with_negative(evidence, candidate, prompts, anchor)
                tries.setdefault(AWAY, []).extend(looked_at(judge, drawn))
        return best(tries)


def with_negative(evidence: Evidence, candidate: Candidate, prompts: list[Prompt], negative: str) -> list[Drawn]:
    """Pictures of the prompts with the same negative prompt for all.

    Raises:
        UserError: If the family draws without one.
    """
    from erasediff_lora.evaluation.pictures import painter

    label = f"negative prompt {negative!r}"
    return candidate.generate(
        prompts, evidence.spare_seed, label, paint=painter(candidate.denoiser, negative), variant={"negative": negative}
    )
