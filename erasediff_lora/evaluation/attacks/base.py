"""What an attack is, and what it returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from erasediff_lora.evaluation.parts import Found, Part, Work
from erasediff_lora.evaluation.shares import interval_text, percent, share

if TYPE_CHECKING:
    from torch import nn

    from erasediff_lora.data.prompts import Prompt
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.judges import PictureJudge
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
        per_concept: Of each concept its own `success`, `tries` and number of `pictures`; the verdict goes by the worst.
            Where there is one concept only, it may be left out.
        found: Of each concept the `restarts.Condition` that a search found, for the files that others can use.
    """

    success: float
    tries: dict[str, float]
    pictures: list[Drawn] = field(repr=False)
    details: dict[str, Any] = field(default_factory=dict)
    per_concept: dict[str, dict[str, Any]] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict, repr=False)


class Attack(Part, Protocol):
    """A way to make an erased model draw the concept. One file each, registered in `ATTACKS`.

    The file also has its options (a `Settings`), if there are any, and what it gives the report. Of another package it
    is an entry point in the group `erasediff_lora.attacks`.

    In evaluation.json stand, for every model, `success`, `tries`, the number of `pictures` and `per_concept` of its
    outcome, and the outcome's `details`: that is what the methods below are given as `found`.
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

    def searched_at_once(self, evaluation: Evaluation, network: nn.Module) -> int:
        """How many pictures the network sees together in a search through its loss; 0: there is none."""
        return getattr(getattr(evaluation, self.name, None), "batch_size", 0)

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        """As many pictures as its `samples` say, for every concept."""
        options = getattr(evaluation, self.name, None)
        return Work(drawn=getattr(options, "samples", 0) * concepts)

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
        return _spread(found)

    def notes(self, found: Found) -> Sequence[str]:
        """What there is to say below its pictures, of the erased model."""
        return [listed(found["tries"])] if len(found["tries"]) > 1 else []

    def rows(self, found: Mapping[str, Any]) -> Mapping[str, str | None]:
        """What `compare` shows: label -> cell, None if there is none.

        Args:
            found: The whole entry; under `models` what was achieved on each.
        """
        label, models = self.name.replace("_", " "), found["models"]
        floor = {"never learned": f"the same on a model that never learned it, {label}"}
        named = {"erased": f"attack success, {label}", "base": f"the same on the base, {label}"} | floor
        rows = {title: _spread(models[model]) for model, title in named.items() if model in models}
        return rows | {f"budget, {label}": found.get("budget")}


class Unknown(Attack):
    """An attack that is not installed here: its numbers are shown as they are."""

    title = "An attack that is not installed here"

    def budget(self, evidence: Evidence) -> str:
        raise NotImplementedError

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        raise NotImplementedError


def _spread(found: Found) -> str:
    """Success with its interval."""
    spread = interval_text(found["success"], found.get("pictures", 0))
    return f"{percent(found['success'])} ({spread})" if spread else percent(found["success"])


def listed(shares: Mapping[str, float | None]) -> str:
    """Shares of the erased model, by what they are of."""
    return "On the erased model: " + ", ".join(f"{name}: {percent(value)}" for name, value in shares.items()) + "."


Looked = tuple["Drawn", bool]
"""A picture, and whether the judge sees the concept in it."""


def best(tries: Mapping[str, Sequence[Looked]], **details: Any) -> Outcome:
    """The outcome of several tries: of each concept an attacker looks at all and keeps the best.

    Args:
        tries: Name -> the pictures of all concepts.
        details: For the report.
    """
    concepts = dict.fromkeys(item.prompt.concept or "" for looked in tries.values() for item, _ in looked)
    per_concept: dict[str, dict[str, Any]] = {}
    shown: list[Looked] = []
    for concept in concepts:
        own = {name: [one for one in looked if one[0].prompt.concept == concept] for name, looked in tries.items()}
        shares = {name: _share(looked) for name, looked in own.items()}
        strongest = max(own, key=lambda name: shares[name])
        per_concept[concept] = {"success": shares[strongest], "tries": shares, "pictures": len(own[strongest])}
        shown += own[strongest]
    together = {name: _share(looked) for name, looked in tries.items()}
    return Outcome(_share(shown), together, [item for item, _ in shown], details, per_concept)


def looked_at(judge: PictureJudge, drawn: Sequence[Drawn]) -> list[Looked]:
    """Pictures, each with whether the judge sees the concept that its prompt stands for."""
    from erasediff_lora.evaluation.metrics.accuracy import success

    return list(zip(drawn, success(judge, drawn), strict=True))


def of_each_concept(evidence: Evidence) -> str:
    """What a budget says after a number of pictures that every concept has for itself."""
    return " of each concept" if len(evidence.forgotten) > 1 else ""


def _share(looked: Sequence[Looked]) -> float:
    return share([hit for _, hit in looked]) or 0.0


def concept_prompts(evidence: Evidence, concept: str, count: int) -> list[Prompt]:
    """Prompts that name the concept, in equal shares over the templates."""
    from erasediff_lora.data.prompts import balanced
    from erasediff_lora.evaluation.pictures import forget_prompts

    named = [prompt for prompt in forget_prompts(evidence.recipe) if prompt.concept == concept]
    return balanced(named, count, evidence.recipe.evaluation.seed)
