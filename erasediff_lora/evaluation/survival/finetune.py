"""Harmless fine-tuning with an adapter, on the pictures that are to be kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from erasediff_lora.errors import Problem
from erasediff_lora.evaluation.parts import out_of_range
from erasediff_lora.evaluation.survival.base import Alter, Hardship
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.checks import Sections


class TuningSettings(Section):
    """How long and how fast somebody fine-tunes."""

    table_name: ClassVar[str] = "finetune"

    steps: list[int] = Field([50, 200], min_length=1, description="when pictures are drawn")
    batch_size: int = Field(8, ge=1, description="pictures a step")

    def check(self, sections: Sections) -> list[Problem]:
        return out_of_range(f"evaluation.{self.table_name}.steps", [float(step) for step in self.steps], 0, 1e9)


class FinetuneSettings(TuningSettings):
    """Another adapter beside the erasure, trained on retain pictures."""

    rank: int = Field(4, ge=1, description="rank of the other adapter, on the same modules")
    learning_rate: float | None = Field(None, gt=0, description="of AdamW; omit for training.learning_rate")


class Finetune(Hardship):
    """A variant is a number of steps."""

    Settings = FinetuneSettings
    title = "Fine-tuned: with another adapter, on pictures of what is kept"

    def variants(self, evidence: Evidence) -> Sequence[str]:
        return steps_of(evidence.settings(FinetuneSettings))

    def depends(self, evidence: Evidence, variant: str) -> dict[str, Any]:
        options = evidence.settings(FinetuneSettings)
        return {
            "options": options.model_dump(exclude={"steps"}) | {"learning_rate": rate_of(evidence, options)},
            "pictures": evidence.retain_set.fingerprint,
            "seed": evidence.recipe.evaluation.seed,
        }

    @contextmanager
    def altering(self, evidence: Evidence, candidate: Candidate) -> Iterator[Alter]:
        from erasediff_lora.evaluation.attacks.relearning import erased_modules
        from erasediff_lora.evaluation.attacks.second_adapter import second_adapter
        from erasediff_lora.evaluation.fine_tuning import FineTuning

        options, denoiser = evidence.settings(FinetuneSettings), candidate.denoiser
        seed, modules = evidence.recipe.evaluation.seed, erased_modules(evidence)
        with second_adapter(denoiser.network, modules, options.rank, seed) as adapter:
            tuning = FineTuning(
                denoiser,
                adapter.parameters,
                evidence.retain_set,
                batch_size=options.batch_size,
                learning_rate=rate_of(evidence, options),
                seed=seed,
                label=f"fine-tuning, {candidate.name}",
            )

            def alter(variant: str) -> None:
                adapter.activate(with_erasure=bool(candidate.strength))
                tuning.advance(int(variant.split()[0]))

            yield alter


def steps_of(options: TuningSettings) -> list[str]:
    """The variants, in rising order."""
    return [f"{step} steps" for step in sorted(set(options.steps))]


def rate_of(evidence: Evidence, options: FinetuneSettings) -> float:
    """The learning rate: that which the erasure was trained with, unless the recipe says otherwise."""
    return options.learning_rate or evidence.recipe.training.learning_rate
