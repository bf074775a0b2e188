"""What a metric is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from erasediff_lora.evaluation.parts import Found, Part, Table, flattened
from erasediff_lora.evaluation.shares import Pairs

if TYPE_CHECKING:
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn


@dataclass(frozen=True)
class Rate:
    """A share of the pictures with the adapter, beside the base's own.

    Attributes:
        share: With the adapter.
        pictures: How many there are; 0 if that is not known.
        base: The base's; None if it was not looked at.
        base_pictures: How many those are; 0 if that is not known.
        pairs: How they differ on the same prompts and seeds; None if that is not known.
    """

    share: float
    pictures: int
    base: float | None
    base_pictures: int
    pairs: Pairs | None = None


@dataclass(frozen=True)
class Recognition:
    """How often a judge saw what the prompts ask for; what the verdict goes by.

    Attributes:
        forgotten: Share of the forget pictures in which the concept is not seen.
        forgotten_base: The same of the base's.
        forget_pictures: How many there are.
        retained: Share of the retain pictures in which all that is asked for is seen; None if nothing could be told.
        retained_base: The same of the base's.
        retain_pictures: How many of them could be judged.
        concepts: Of each forgotten concept the share in which it is not seen.
        parts: Of each retained concept and each other attribute the share in which it is seen.
        retain_pairs: How the two differ on the same prompts and seeds; None if that is not known.
        pinpoint: The retain pictures told apart, into those 'near' to what is forgotten and those 'far' from it.
    """

    forgotten: float
    forgotten_base: float | None
    forget_pictures: int
    retained: float | None
    retained_base: float | None
    retain_pictures: int
    concepts: Mapping[str, Rate] = field(default_factory=dict)
    parts: Mapping[str, Rate] = field(default_factory=dict)
    retain_pairs: Pairs | None = None
    pinpoint: Mapping[str, Rate] = field(default_factory=dict)


@dataclass(frozen=True)
class ScorePart:
    """A part of the single score.

    Attributes:
        value: In [0, 1], the more the better.
        words: What it is.
        stand_in: Whether it gives way to a metric that was made for it.
    """

    value: float
    words: str
    stand_in: bool = False


class Metric(Part, Protocol):
    """Something that is measured of the erased model and the base. One file each, registered in `METRICS`.

    The file also has its options (a `Settings`), if there are any, and what it gives the report. Of another package it
    is an entry point in the group `erasediff_lora.metrics`.
    """

    @abstractmethod
    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """The numbers, as they are written to evaluation.json.

        Args:
            evidence: The two models, their pictures, the judge, and the recipe.

        Raises:
            UserError: If this recipe lacks something; the metric is left out, with the reason.
        """
        ...

    def tables(self, found: Found) -> Sequence[Table]:
        """How the report shows the numbers.

        Args:
            found: What `measure` returned, of this version or an earlier one.
        """
        return [Table(f"{self.name}:", ("", "found"), list(flattened(found).items()))]

    def pictures(self, evidence: Evidence) -> Mapping[str, Mapping[str, Sequence[Drawn]]]:
        """Pictures for the report: title -> row -> its pictures, of the same prompts and seeds in all rows.

        Args:
            evidence: What was measured, whose pictures are drawn already.
        """
        return {}

    def summary(self, found: Found, concepts: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Lines for the terminal, each a word and what there is to say.

        Args:
            found: What `measure` returned.
            concepts: The forgotten ones.
        """
        return []

    def recognition(self, found: Found) -> Recognition | None:
        """What the verdict goes by, if this metric tells it: the first one that does, decides."""
        return None

    def score_parts(self, found: Found) -> Mapping[str, ScorePart]:
        """What it tells of the single score: 'safety', 'prompt match' or 'quality'."""
        return {}

    def damage(self, found: Found) -> float | None:
        """How far retained pictures lie from the base's, in multiples of its own spread, if this metric tells it."""
        return None


class Unknown(Metric):
    """A metric that is not installed here: its numbers are shown as they are."""

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        raise NotImplementedError

    def rows(self, found: Found) -> dict[str, str | None]:
        return {f"{self.name}, {label}": cell for label, cell in flattened(found).items()}
