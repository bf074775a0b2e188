"""Quantising the merged model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from erasediff_lora.evaluation.survival.base import Alter, Hardship
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence


class QuantiseSettings(Section):
    """Merged, and stored in fewer bits."""

    formats: list[Literal["fp8", "int8", "nf4"]] = Field(
        ["fp8", "int8", "nf4"], min_length=1, description="fp8 (e4m3fn), int8 by output, nf4 in blocks of 64"
    )


class Quantise(Hardship):
    """A variant is a format. fp8 rounds all matrices, int8 and nf4 those of linear layers, as the usual tools do."""

    Settings = QuantiseSettings
    title = "Quantised: the adapter merged, the weights stored in fewer bits"

    def variants(self, evidence: Evidence) -> Sequence[str]:
        return list(evidence.settings(QuantiseSettings).formats)

    @contextmanager
    def altering(self, evidence: Evidence, candidate: Candidate) -> Iterator[Alter]:
        from erasediff_lora.evaluation.survival.weights import matrices, merged, to_float8, to_int8, to_nf4

        rounds = {"fp8": to_float8, "int8": to_int8, "nf4": to_nf4}
        with merged(candidate) as (weights, _):
            whole = {name: weight.data for name, weight in matrices(weights).items()}
            state = ""

            def alter(variant: str) -> None:
                nonlocal state
                if variant == state:
                    return
                for name, data in whole.items():
                    fits = variant == "fp8" or data.ndim == 2
                    weights[name].data = rounds[variant](data) if fits else data
                state = variant

            yield alter
