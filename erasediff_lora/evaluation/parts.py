"""What metrics and attacks have in common: options, means, and what they give the report.

They are imported when the recipe's schema is made, also to print a help text: what takes long to import is imported by
the functions that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from erasediff_lora.errors import Problem
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.charts import Chart
    from erasediff_lora.recipe.evaluation import Evaluation

Found = Mapping[str, Any]
"""What stands in evaluation.json of a metric or an attack."""
Rehearsal = Callable[[], object]
"""Looks at a batch of pictures on the meta device, so that what it takes is counted; returns what stays in memory."""


@dataclass(frozen=True)
class Table:
    """A paragraph and a table of the report; either may be empty.

    Attributes:
        intro: What the numbers are.
        head: Titles of the columns.
        rows: Cells.
        texts: How many columns from the left hold words; the others hold numbers.
    """

    intro: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    texts: int = 1


@dataclass(frozen=True)
class Work:
    """What a part has the network do, so that a plan can say how long it takes.

    Attributes:
        drawn: Pictures that are drawn.
        looked: Pictures that it sees once more beside them, without gradients.
        trained: The same with gradients.
    """

    drawn: float = 0
    looked: float = 0
    trained: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.drawn + other.drawn, self.looked + other.looked, self.trained + other.trained)

    def times(self, count: float) -> Work:
        """So often."""
        return Work(self.drawn * count, self.looked * count, self.trained * count)


class Part(Protocol):
    """A metric or an attack. Subclasses override what they have.

    Args:
        name: Under which it is registered.
    """

    Settings: ClassVar[type[Section] | None] = None
    """Its options: the recipe's table `evaluation.NAME`, whose `check` says what is wrong between fields."""

    quick: ClassVar[bool] = False
    """Whether it takes little more than drawing the pictures: part of `evaluate --quick`."""

    name: str

    def __init__(self, name: str) -> None:
        self.name = name

    def available(self, evaluation: Evaluation) -> bool:
        """Whether the recipe has the means for it: part of `evaluate --full`."""
        return True

    def left_open(self, evaluation: Evaluation) -> str | None:
        """The recipe's field that would say by what it measures, where it says nothing."""
        return None

    def require_means(self, evaluation: Evaluation) -> None:
        """See that the weights and packages are there that the recipe names for it, before anything is drawn.

        Raises:
            UserError: If they are not.
        """
        return None

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        """What it takes besides the pictures that are drawn anyway; an attack's on one model.

        Args:
            evaluation: Its options, and the numbers of pictures.
            concepts: How many are forgotten.
        """
        return Work()

    def networks(self, evaluation: Evaluation) -> Mapping[str, Rehearsal]:
        """What it looks at pictures with besides the judge, by name, for `plan`."""
        return {}

    def charts(self, found: Found) -> Sequence[Chart]:
        """What the report draws of its numbers."""
        return []

    def rows(self, found: Found) -> Mapping[str, str | None]:
        """What `compare` shows of its numbers: label -> cell, None if there is none."""
        return {}


def flattened(found: Any, prefix: str = "") -> dict[str, str]:
    """Names and numbers of whatever there is, without the lists."""
    if isinstance(found, Mapping):
        parts = [flattened(value, f"{prefix} {key}".strip()) for key, value in found.items()]
        return {name: text for part in parts for name, text in part.items()}
    if isinstance(found, float):
        return {prefix: f"{found:.4g}"}
    return {prefix: str(found)} if isinstance(found, int | str) else {}


def out_of_range(field: str, values: Sequence[float], low: float, high: float) -> list[Problem]:
    """Complaints about the values of a list that are not above `low` and at most `high`."""
    what = f"must be above {low} and at most {high:g}."
    return [Problem(field, value, what) for value in values if not low < value <= high]
