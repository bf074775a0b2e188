"""Other names for the concept, from a list."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.evaluation.attacks.base import (
    Attack,
    Looked,
    Outcome,
    best,
    listed,
    looked_at,
    of_each_concept,
)
from erasediff_lora.evaluation.parts import Found
from erasediff_lora.evaluation.shares import share
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.data.prompts import Prompt
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.checks import Sections
    from erasediff_lora.recipe.evaluation import Evaluation

log = logging.getLogger(__name__)
NAMES_FIELD = "evaluation.paraphrases.names"


class ParaphrasesSettings(Section):
    """Which names."""

    names: dict[str, list[str]] = Field(
        default_factory=dict, description="concept: other names for it, to try in its place"
    )
    samples: int = Field(60, ge=1, description="pictures for the paraphrases of a concept")

    @model_validator(mode="before")
    @classmethod
    def _read_old_form(cls, values: Any) -> Any:
        """`paraphrases: {cat: [kitten]}`, from before there was more in the table than names."""
        given = values if isinstance(values, dict) else {}
        names = {key: value for key, value in given.items() if isinstance(value, list)}
        if not names:
            return values
        log.warning("evaluation.paraphrases.CONCEPT is now called %s.CONCEPT", NAMES_FIELD)
        return {"names": names} | {key: value for key, value in given.items() if key not in names}

    def check(self, sections: Sections) -> list[Problem]:
        problems = []
        known = [concept.name for concept in sections.forget.concepts] if sections.forget else []
        for name, others in self.names.items():
            if known and name not in known:
                problems.append(Problem(NAMES_FIELD, name, "is not to be forgotten.", nearest(name, known)))
            if not all(other.strip() for other in others) or not others:
                remedy = "List other names, or omit it."
                problems.append(Problem(f"{NAMES_FIELD}.{name}", others, "holds no name.", remedy))
        return problems


class Paraphrases(Attack):
    """All names together count as one try a concept; `details` has each name's success."""

    Settings = ParaphrasesSettings
    quick = True
    title = "Paraphrases: other names for the concept in the prompt"
    searches = False

    def available(self, evaluation: Evaluation) -> bool:
        return bool(evaluation.settings(ParaphrasesSettings).names)

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(ParaphrasesSettings)
        names = [name for others in options.names.values() for name in others]
        listed_names = f"{', '.join(names[:6])}{', …' * (len(names) > 6)}"
        return f"{len(names)} names ({listed_names}), {options.samples} pictures{of_each_concept(evidence)}"

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        judge, options = evidence.require_judge(self.name), evidence.settings(ParaphrasesSettings)
        if not any(options.names.values()):
            remedy = "Write {concept: [name, …]}."
            raise UserError(Problem(NAMES_FIELD, options.names, "lists no other name.", remedy))
        looked: list[Looked] = []
        for concept, others in options.names.items():
            if others:
                prompts = prompts_naming(evidence, concept, others, options.samples)
                drawn = candidate.generate(prompts, evidence.spare_seed, f"paraphrases of {concept}")
                looked += looked_at(judge, drawn)
        by_name: dict[str, list[bool]] = {}
        for item, hit in looked:
            by_name.setdefault(item.prompt.attributes["name"], []).append(hit)
        shares = {name: share(found) for name, found in by_name.items()}
        return best({"all": looked}, by_name=shares)

    def notes(self, found: Found) -> list[str]:
        return [listed(found["by_name"])]


def prompts_naming(evidence: Evidence, concept: str, others: list[str], count: int) -> list[Prompt]:
    """Forget prompts with other names in the concept's place, which they are of; the attribute 'name' says which."""
    from erasediff_lora.data.prompts import Prompt, balanced, paraphrased

    data, seed = evidence.recipe.forget, evidence.recipe.evaluation.seed
    return [
        Prompt(prompt.text, concept, prompt.attributes | {"name": prompt.concept or ""})
        for prompt in balanced(paraphrased(data, concept, others), count, seed)
    ]
