"""Merging at other strengths, in fewer digits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field

from erasediff_lora.errors import Problem
from erasediff_lora.evaluation.parts import out_of_range
from erasediff_lora.evaluation.survival.base import Alter, Hardship
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.checks import Sections

HALF = "1, float16"


class MergeSettings(Section):
    """Merged into the base at strengths around 1."""

    strengths: list[float] = Field([0.8, 0.9, 1.1, 1.2], description="strengths, beside 1 in float16")

    def check(self, sections: Sections) -> list[Problem]:
        return out_of_range("evaluation.merge.strengths", self.strengths, 0, 10)


class Merge(Hardship):
    """A variant is a strength; the weights of strength 1 are rounded to float16, as they are shared."""

    Settings = MergeSettings
    title = "Merged: into the base, at a strength"

    def variants(self, evidence: Evidence) -> Sequence[str]:
        return [HALF, *(f"{strength:g}" for strength in evidence.settings(MergeSettings).strengths)]

    @contextmanager
    def altering(self, evidence: Evidence, candidate: Candidate) -> Iterator[Alter]:
        from erasediff_lora.evaluation.survival.weights import merged

        with merged(candidate) as (weights, base):
            whole = {name: weight.data for name, weight in weights.items()}

            def alter(variant: str) -> None:
                for name, weight in weights.items():
                    data = whole[name]
                    if variant == HALF:
                        weight.data = data.half().to(data)
                    else:
                        weight.data = base[name] + float(variant) * (data - base[name])

            yield alter
