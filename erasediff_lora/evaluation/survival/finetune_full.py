"""Harmless fine-tuning of the merged model's own weights, on the pictures that are to be kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from erasediff_lora.evaluation.survival.base import Alter, Hardship
from erasediff_lora.evaluation.survival.finetune import TuningSettings, steps_of

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence


class FinetuneFullSettings(TuningSettings):
    """The adapter merged, and the base's own weights trained on retain pictures."""

    table_name: ClassVar[str] = "finetune_full"

    weights: Literal["all", "cross_attention"] = Field("all", description="what is trained")
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW")


class FinetuneFull(Hardship):
    """A variant is a number of steps."""

    Settings = FinetuneFullSettings
    title = "Fine-tuned in full: the adapter merged, the model's own weights trained on pictures of what is kept"

    def variants(self, evidence: Evidence) -> Sequence[str]:
        return steps_of(evidence.settings(FinetuneFullSettings))

    def depends(self, evidence: Evidence, variant: str) -> dict[str, Any]:
        return {
            "options": evidence.settings(FinetuneFullSettings).model_dump(exclude={"steps"}),
            "pictures": evidence.retain_set.fingerprint,
            "seed": evidence.recipe.evaluation.seed,
        }

    @contextmanager
    def altering(self, evidence: Evidence, candidate: Candidate) -> Iterator[Alter]:
        from erasediff_lora.evaluation.fine_tuning import FineTuning
        from erasediff_lora.evaluation.survival.weights import merged

        options, denoiser = evidence.settings(FinetuneFullSettings), candidate.denoiser
        with merged(candidate) as (weights, _):
            chosen = [
                weight for name, weight in weights.items() if options.weights == "all" or _attends(denoiser, name)
            ]
            for weight in chosen:
                weight.requires_grad_(True)
            tuning = FineTuning(
                denoiser,
                chosen,
                evidence.retain_set,
                batch_size=options.batch_size,
                learning_rate=options.learning_rate,
                seed=evidence.recipe.evaluation.seed,
                label=f"fine-tuning in full, {candidate.name}",
            )
            try:
                yield lambda variant: tuning.advance(int(variant.split()[0]))
            finally:
                for weight in chosen:
                    weight.requires_grad_(False)
                    weight.grad = None


def _attends(denoiser: Any, name: str) -> bool:
    """Whether the weight belongs to cross attention, or to what a family has in its place."""
    patterns = denoiser.target_presets.get("cross_attention") or denoiser.target_presets["attention"]
    return any(re.fullmatch(pattern, name.rpartition(".")[0]) for pattern in patterns)
