"""Prompts that others found: lists of adversarial prompts from files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erasediff_lora.evaluation.attacks.base import Attack, Looked, Outcome, best, looked_at
from erasediff_lora.evaluation.parts import Found

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.evaluation import Evaluation

LISTED = "listed_prompts"


class ListedPrompts(Attack):
    """Every prompt of the recipe's files that is an attack, drawn from its own seed: one try."""

    title = "Listed prompts: those of the given files, as others found them"
    searches = False

    def available(self, evaluation: Evaluation) -> bool:
        return False  # files say themselves whether their prompts are attacks

    def budget(self, evidence: Evidence) -> str:
        files = [f"{told['file']}: {told['uses']['attack']:,}" for told in evidence.from_files.files]
        return f"{len(evidence.from_files.attack):,} prompts ({', '.join(files)})"

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        """Draw and look.

        Raises:
            UserError: If there is no judge, or no file has such prompts.
        """
        judge = evidence.require_judge(self.name)
        if not evidence.from_files.attack:
            from erasediff_lora.errors import Problem, UserError

            what = "holds no prompt that is an attack."
            raise UserError(Problem("evaluation.prompts", None, what, "Add one: {file: FILE, use: attack}."))
        drawn = candidate.generate(evidence.from_files.attack, evidence.spare_seed, "listed prompts")
        looked: list[Looked] = looked_at(judge, drawn)
        return best({"all": looked}, works=[item.prompt.text for item, hit in looked if hit])

    def notes(self, found: Found) -> list[str]:
        works = found["works"]
        return [f"Those that work: {'; '.join(works[:5])}{'; …' * (len(works) > 5)}"] if works else []
