"""What needs no training: the base, drawn otherwise. It stands beside the adapter's numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from erasediff_lora.evaluation.metrics.base import Metric
from erasediff_lora.evaluation.parts import Found, Table, Work
from erasediff_lora.evaluation.shares import interval_text, percent
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Paint
    from erasediff_lora.recipe.evaluation import Evaluation

NUMBERS = ("unlearning_accuracy", "retain_accuracy")
COUNTED = (
    ("forgotten: the concept is not seen", "unlearning_accuracy", "forget"),
    ("retained: all that is asked for is seen", "retain_accuracy", "retain"),
)


class BaselineSettings(Section):
    """How many pictures."""

    samples: int = Field(60, ge=1, description="pictures of each kind of prompts")


@dataclass(frozen=True)
class Way:
    """How the base is drawn.

    Attributes:
        name: In a column's title.
        paint: Draws.
        depends: What the pictures depend on besides, for the store.
    """

    name: str
    paint: Paint
    depends: dict[str, Any]


class Baseline(Metric, Protocol):
    """Accuracies of the base as it is, and drawn in other ways, of the same prompts and seeds."""

    Settings: ClassVar[type[BaselineSettings]] = BaselineSettings
    intro: ClassVar[str]
    called: ClassVar[str]
    """In comparisons."""

    @abstractmethod
    def ways(self, evidence: Evidence) -> Sequence[Way]:
        """In which the base is drawn.

        Raises:
            UserError: If the family cannot.
        """
        ...

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        """Of one way."""
        return Work(drawn=2 * evaluation.settings(self.Settings).samples)

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """The accuracies, those of the first way on top.

        Raises:
            UserError: If there is no judge, or the family draws in no such way.
        """
        from erasediff_lora.evaluation.metrics.accuracy import accuracy

        judge, base = evidence.require_judge(self.name), evidence.candidates.base
        samples = evidence.settings(self.Settings).samples
        count = evidence.recipe.evaluation.shared(samples, len(evidence.forgotten))
        asked = {
            "forget": (evidence.forget_prompts[:count], evidence.forget_seed),
            "retain": (evidence.retain_prompts[:samples], evidence.retain_seed),
        }
        plain = [base.generate(*of, kind) for kind, of in asked.items()]
        found: dict[str, Any] = {}
        for way in self.ways(evidence):
            drawn = [
                base.generate(*of, f"{kind}, {way.name}", paint=way.paint, variant=way.depends)
                for kind, of in asked.items()
            ]
            told = accuracy(judge, plain[0], drawn[0], plain[1], drawn[1], evidence.concepts)
            numbers = {f"{name}{end}": told[f"{name}{end}"] for name in NUMBERS for end in ("", "_base")}
            per_concept = {name: told["per_concept"].get(name, {}) for name in evidence.forgotten}
            worst = {name: row.get("unlearning_accuracy") for name, row in per_concept.items()}
            found[way.name] = numbers | {"counted": told["counted"], "per_concept": worst}
        return {"avoided": avoided(evidence), "ways": found}

    def tables(self, found: Found) -> list[Table]:
        ways: Mapping[str, Any] = found["ways"]
        first = next(iter(ways.values()))
        rows = []
        for label, number, kind in COUNTED:
            count = first["counted"][kind]
            shares = [[percent(way[number]), interval_text(way[number], count)] for way in ways.values()]
            cells = [cell for pair in shares for cell in pair]
            rows.append((label, percent(first[f"{number}_base"]), *cells, str(count)))
        head = [title for name in ways for title in (name, "95% interval")]
        return [Table(f"{self.intro} Avoided: {found['avoided']}.", ("", "base", *head, "pictures"), rows)]

    def rows(self, found: Found) -> dict[str, str | None]:
        names = {"unlearning_accuracy": "forgotten", "retain_accuracy": "retained"}
        one = len(found["ways"]) == 1
        return {
            f"{self.called}{'' if one else f', {way}'}: {label}": percent(numbers[number])
            for way, numbers in found["ways"].items()
            for number, label in names.items()
        }


def avoided(evidence: Evidence) -> str:
    """The forgotten concepts, as a prompt."""
    return ", ".join(evidence.forgotten)
