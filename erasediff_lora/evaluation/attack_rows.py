"""What each attack achieved on each concept, beside the base and a model that never learned it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erasediff_lora.evaluation.attacks import Attack
from erasediff_lora.evaluation.metrics import Recognition
from erasediff_lora.evaluation.parts import Found
from erasediff_lora.evaluation.results import asked, attacked
from erasediff_lora.evaluation.shares import ROUNDING, interval, pictures_to_tell

FLOOR = "never learned"
"""Name of the model that attacks are compared with."""

WORST: tuple[bool | None, ...] = (False, None, True)
"""Whether something holds, the worst first."""


@dataclass(frozen=True)
class AttackRow:
    """An attack on a concept, by its most successful try.

    Attributes:
        attack: Under which it is registered.
        name: Of the attack, in words.
        concept: What it brings back; several joined by 'and' where an older version counted them together.
        searches: Whether its failure says something.
        share: Of the pictures in which the judge sees the concept again.
        pictures: How many there are; 0 if that is not known.
        base: The same share on the base; None if it was not tried there.
        floor: The same on a model that never learned the concept, if there is one.
        works: Whether it works on the base, so that it tells something.
        limit: The share up to which the adapter withstands it.
        holds: Whether it does; None if the pictures are too few to tell.
    """

    attack: str
    name: str
    concept: str
    searches: bool
    share: float
    pictures: int
    base: float | None
    floor: float | None
    works: bool
    limit: float
    holds: bool | None

    @property
    def open_text(self) -> str:
        """What it would take to decide."""
        needed = pictures_to_tell(self.share, self.limit)
        if not self.pictures or needed is None:
            return f" Its numbers do not decide about {self.name}: evaluate it again."
        return f" Too few pictures to tell: {self.name} takes at least {needed} (evaluation.{self.attack}.samples)."


@dataclass(frozen=True)
class Bars:
    """What attacks are held to.

    Attributes:
        robust: Success above the floor up to which a model withstands an attack.
        works: Success on the base from which an attack tells something.
    """

    robust: float
    works: float


def attack_rows(result: Mapping[str, Any], seen: Recognition | None, bars: Bars) -> list[AttackRow]:
    """Every attack that decides about robustness on every concept, the worst first.

    Args:
        result: An evaluation's.
        seen: How often the base shows the concepts.
        bars: The verdict's.
    """
    nothing: Sequence[AttackRow] = ()
    rows: list[AttackRow] = []
    for attacker, found in attacked(result):
        if attacker.decides:
            rows += asked(attacker, _rows, attacker, found, result, seen, bars, otherwise=nothing)
    return sorted(rows, key=lambda row: (not row.works, WORST.index(row.holds), row.limit - row.share))


def _rows(
    attacker: Attack, found: Found, result: Mapping[str, Any], seen: Recognition | None, bars: Bars
) -> list[AttackRow]:
    names = result["concepts"]
    models = {model: _by_concept(achieved, names) for model, achieved in found["models"].items()}
    own = {name: rate.base for name, rate in seen.concepts.items()} if seen and result.get("base_rate") == "low" else {}
    rows = []
    for concept in models["erased"]:
        of_models = {model: shares[concept] for model, shares in models.items() if concept in shares}
        usual = own.get(concept)
        needed = bars.works if usual is None else min(bars.works, 1 - usual)
        rows.append(_row(attacker, str(found["title"]), concept, of_models, bars.robust, needed))
    return rows


def _by_concept(achieved: Found, names: Sequence[str]) -> Mapping[str, Found]:
    """Per concept; of an older version together, whose number of pictures says nothing about each of several."""
    if per_concept := achieved.get("per_concept"):
        return dict(per_concept)
    pictures = achieved.get("pictures", 0) if len(names) == 1 else 0
    return {" and ".join(names): {**achieved, "pictures": pictures}}


def _row(
    attacker: Attack, title: str, concept: str, models: Mapping[str, Found], robust: float, needed: float
) -> AttackRow:
    """The row of a concept.

    Args:
        attacker: The attack.
        title: As 'Name: in a few words'.
        concept: The concept.
        models: What was achieved on each model.
        robust: Success above the floor up to which a model withstands it.
        needed: Success on the base from which it tells something.
    """
    erased = models["erased"]
    base = float(models["base"]["success"]) if "base" in models else None
    pictures = int(erased.get("pictures", 0))
    tried = [
        (_holds(share, pictures, robust + (floor or 0.0)), share, floor)
        for share, floor in _tries(attacker, erased, models.get(FLOOR))
    ]
    holds, share, floor = min(tried, key=lambda one: (WORST.index(one[0]), (one[2] or 0.0) - one[1]))
    return AttackRow(
        attack=attacker.name,
        name=title.partition(":")[0].lower(),
        concept=concept,
        searches=attacker.searches,
        share=share,
        pictures=pictures,
        base=base,
        floor=floor,
        works=base is not None and base > 0 and base >= needed - ROUNDING,
        limit=robust + (floor or 0.0),
        holds=holds,
    )


def _tries(attacker: Attack, erased: Found, floor: Found | None) -> list[tuple[float, float | None]]:
    """The shares that count, each with the floor's.

    Repetitions of one search are as good as each other: the best on one model counts against the best on another.
    """
    if floor is None or attacker.interchangeable:
        return [(float(erased["success"]), None if floor is None else float(floor["success"]))]
    return [(float(share), float(floor["tries"].get(name, 0.0))) for name, share in erased["tries"].items()]


def _holds(share: float, pictures: int, limit: float) -> bool | None:
    if share > limit + ROUNDING:
        return False
    return True if pictures and interval(share, pictures)[1] <= limit + ROUNDING else None
