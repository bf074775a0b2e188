"""Latent start: image to image from a picture of the concept (SDEdit, Meng et al. 2021)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.attacks.base import Attack, Looked, Outcome, best, looked_at
from erasediff_lora.evaluation.parts import Work, out_of_range
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.data.prompts import Prompt
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn, Request
    from erasediff_lora.recipe import Sampling
    from erasediff_lora.recipe.checks import Sections
    from erasediff_lora.recipe.evaluation import Evaluation


class LatentStartSettings(Section):
    """Image to image: a forget picture, noised part of the way, drawn on under the concept's prompt (SDEdit)."""

    table_name: ClassVar[str] = "latent_start"

    strengths: list[float] = Field([0.4, 0.6, 0.8], min_length=1, description="share of the noise schedule added")
    samples: int = Field(
        60, ge=1, description="pictures drawn for a strength, shared by all concepts; no more than `forget_samples`"
    )

    def check(self, sections: Sections) -> list[Problem]:
        return out_of_range(f"evaluation.{self.table_name}.strengths", self.strengths, 0.001, 1)


class LatentStart(Attack):
    """A try is a strength of the noise. The less noise, the more of the given picture is left, on any model."""

    Settings: ClassVar[type[LatentStartSettings]] = LatentStartSettings
    title = "Latent start: a noised picture of the concept, drawn on under its prompt"

    def base_pictures(self, evaluation: Evaluation) -> int:
        return evaluation.settings(LatentStartSettings).samples

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        """So much noise, so many of the steps."""
        options = evaluation.settings(self.Settings)
        return Work(drawn=options.samples * sum(options.strengths))

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(self.Settings)
        strengths = ", ".join(f"{strength:g}" for strength in options.strengths)
        return f"noised by {strengths} of the schedule, {options.samples} pictures each"

    def wording(self, prompt: Prompt, settings: LatentStartSettings) -> Prompt:
        """What the picture is drawn on under: the prompt that it was drawn from."""
        return prompt

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        judge = evidence.require_judge(self.name)
        options = evidence.settings(self.Settings)
        found = sources(evidence, self.name, options.samples)
        tries: dict[str, list[Looked]] = {}
        for strength in options.strengths:

            def paint(asked: Request, strength: float = strength) -> Any:
                images = [found[row].image for row in asked.rows]
                sampling = drawn_on(asked.sampling, strength)
                return candidate.denoiser.generate_from(images, strength, asked.texts, asked.seeds, sampling)

            drawn = candidate.generate(
                [self.wording(item.prompt, options) for item in found],
                evidence.spare_seed,
                f"{self.name.replace('_', ' ')} at {strength:g}",
                paint=paint,
                variant={
                    "latent_start": strength,
                    "sources": [evidence.candidates.base.store.depends["base"], seeds_of(found)],
                },
            )
            tries[f"{strength:g}"] = looked_at(judge, drawn)
        return best(tries)


def drawn_on(sampling: Sampling, strength: float) -> Sampling:
    """With so many steps that at least one of them is left from there: without any the picture stays what it was."""
    steps = max(sampling.steps, math.floor(1 / strength))
    while int(steps * strength) < 1:
        steps += 1
    return sampling.model_copy(update={"steps": steps})


def sources(evidence: Evidence, name: str, samples: int) -> list[Drawn]:
    """Pictures by the base in which the judge sees the concept, of every concept as many where there are.

    Args:
        evidence: The base's pictures and the judge.
        name: Of the attack, for the message.
        samples: How many, for all concepts together.

    Raises:
        UserError: If the judge sees it in none.
    """
    drawn = evidence.forget(evidence.candidates.base)
    seen = [item for item, hit in looked_at(evidence.require_judge(name), drawn) if hit]
    concepts = len(evidence.forgotten)
    each = math.ceil(evidence.recipe.evaluation.shared(samples, concepts) / concepts)
    own = {concept: [item for item in seen if item.prompt.concept == concept] for concept in evidence.forgotten}
    chosen = {id(item) for items in own.values() for item in items[:each]}
    found = [item for item in seen if id(item) in chosen]
    if not found:
        raise UserError(
            Problem(
                "evaluation.judge",
                evidence.recipe.evaluation.judge,
                f"sees the concept in none of the base's pictures, so {name} has nothing to start from.",
                "Check the judge, or whether the base draws the concept at all.",
            )
        )
    return found


def seeds_of(drawn: list[Drawn]) -> list[list[Any]]:
    """What tells the starting pictures from others of the same base."""
    return [[item.prompt.text, item.seed] for item in drawn]
