"""What an attack is, and what it returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from erasediff_lora.evaluation.parts import Found, Part
from erasediff_lora.evaluation.shares import interval_text, percent

if TYPE_CHECKING:
    from erasediff_lora.data.prompts import Prompt
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn
    from erasediff_lora.recipe.evaluation import Evaluation


@dataclass(frozen=True)
class Outcome:
    """What an attack achieved on one model.

    Attributes:
        success: Share of the pictures in which the judge sees the concept; of the attack's best try.
        tries: The same for each try: restart, strength of the noise, step of the fine-tuning.
        pictures: Those of the best try.
        details: What was found, for the report.
    """

    success: float
    tries: dict[str, float]
    pictures: list[Drawn] = field(repr=False)
    details: dict[str, Any] = field(default_factory=dict)


class Attack(Part, Protocol):
    """A way to make an erased model draw the concept. One file each, registered in `ATTACKS`.

    The file also has its options (a `Settings`), if there are any, and what it gives the report. Of another package it
    is an entry point in the group `erasediff_lora.attacks`.

    In evaluation.json stand, for every model, `success`, `tries` and the number of `pictures` of its outcome, and the
    outcome's `details`: that is what the methods below are given as `found`.
    """

    title: ClassVar[str]
    """What the attacker does, as 'Name: in a few words'."""

    interchangeable: ClassVar[bool] = False
    """Whether the tries are repetitions of one search: then the best on one model counts against the best on another,
    and else each against its own."""

    decides: ClassVar[bool] = True
    """Whether the verdict *robust* goes by its success."""

    searches: ClassVar[bool] = True
    """Whether it looks for a way back, so that its failure says something; a fixed list does not."""

    def base_pictures(self, evaluation: Evaluation) -> int:
        """How many of the base's forget pictures it starts from."""
        return 0

    @abstractmethod
    def budget(self, evidence: Evidence) -> str:
        """What the attacker may spend, in words."""
        ...

    @abstractmethod
    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        """Attack one model.

        Args:
            evidence: The judge, the recipe, and `evidence.settings(Settings)`, the attack's own options.
            candidate: The model: the erased one, the base, or one that never learned the concept.

        Raises:
            UserError: If the attack is impossible with this recipe; it is left out, with the reason.
        """
        ...

    def words(self, found: Found) -> str:
        """What it achieved on a model, as a cell of a table."""
        spread = interval_text(found["success"], found["pictures"])
        return f"{percent(found['success'])} ({spread})" if spread else percent(found["success"])

    def notes(self, found: Found) -> Sequence[str]:
        """What there is to say below its pictures, of the erased model."""
        return [listed(found["tries"])] if len(found["tries"]) > 1 else []

    def rows(self, found: Mapping[str, Any]) -> Mapping[str, str | None]:
        """What `compare` shows: label -> cell, None if there is none.

        Args:
            found: The whole entry; under `models` what was achieved on each.
        """
        label, models = self.name.replace("_", " "), found["models"]
        return {
            f"attack success, {label}": percent(models["erased"]["success"]),
            f"the same on the base, {label}": percent(models["base"]["success"]),
        }


class Unknown(Attack):
    """An attack that is not installed here: its numbers are shown as they are."""

    title = "An attack that is not installed here"

    def budget(self, evidence: Evidence) -> str:
        raise NotImplementedError

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        raise NotImplementedError


def listed(shares: Mapping[str, float | None]) -> str:
    """Shares of the erased model, by what they are of."""
    return "On the erased model: " + ", ".join(f"{name}: {percent(value)}" for name, value in shares.items()) + "."


def best(tries: dict[str, tuple[float, list[Drawn]]], **details: Any) -> Outcome:
    """The outcome of several tries: an attacker looks at all and keeps the best."""
    name = max(tries, key=lambda key: tries[key][0])
    return Outcome(tries[name][0], {key: value for key, (value, _) in tries.items()}, tries[name][1], details)


def concept_prompts(evidence: Evidence, concept: str, count: int) -> list[Prompt]:
    """Prompts that name the concept, in equal shares over the templates."""
    from erasediff_lora.data.prompts import balanced
    from erasediff_lora.evaluation.pictures import forget_prompts

    named = [prompt for prompt in forget_prompts(evidence.recipe) if prompt.concept == concept]
    return balanced(named, count, evidence.recipe.evaluation.seed)
