"""Other names for the concept, from a list."""

from __future__ import annotations

from erasediff_lora.data.prompts import Prompt, balanced, expand
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.attacks.base import Outcome, best
from erasediff_lora.evaluation.candidates import Candidate
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.metrics.accuracy import share, success
from erasediff_lora.evaluation.pictures import Drawn

TITLE = "Paraphrases: other names for the concept in the prompt"


def budget(evidence: Evidence) -> str:
    options = evidence.recipe.evaluation
    names = [name for others in options.paraphrases.values() for name in others]
    return (
        f"{len(names)} names ({', '.join(names[:6])}{', …' * (len(names) > 6)}), {options.paraphrase_samples} pictures"
    )


def run(evidence: Evidence, candidate: Candidate) -> Outcome:
    """All names together count as one try a concept; `details` has each name's success."""
    judge = evidence.require_judge("paraphrases")
    options, data = evidence.recipe.evaluation, evidence.recipe.forget
    if not any(options.paraphrases.values()):
        raise UserError(
            Problem(
                "evaluation.paraphrases", options.paraphrases, "lists no other name.", "Write {concept: [name, …]}."
            )
        )
    shown: list[Drawn] = []
    hits: list[bool] = []
    for concept, others in options.paraphrases.items():
        if not others:
            continue
        prompts = [
            Prompt(prompt.text, concept, prompt.attributes | {"name": prompt.concept or ""})
            for prompt in balanced(
                expand(data.templates, others, data.placeholders), options.paraphrase_samples, options.seed
            )
        ]
        drawn = candidate.generate(prompts, evidence.spare_seed, f"paraphrases of {concept}")
        shown += drawn
        hits += success(judge, drawn)
    by_name: dict[str, list[bool]] = {}
    for item, hit in zip(shown, hits, strict=True):
        by_name.setdefault(item.prompt.attributes["name"], []).append(hit)
    return best({"all": (share(hits) or 0.0, shown)}, by_name={name: share(found) for name, found in by_name.items()})
