"""What needs no training: the base with the concept as negative prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from erasediff_lora.evaluation.metrics.baselines import Baseline, BaselineSettings, Way, avoided

if TYPE_CHECKING:
    from erasediff_lora.evaluation.evidence import Evidence


class NegativePromptSettings(BaselineSettings):
    """The base with the concepts as negative prompt."""


class NegativePrompt(Baseline):
    """One way: guidance leads away from the concepts in the place of the empty prompt."""

    Settings = NegativePromptSettings
    intro = (
        "What needs no training: the base with the forgotten concepts as negative prompt, for the same prompts and"
        " seeds. It protects nothing that is given away: whoever has the base leaves the negative prompt out."
    )
    called = "the base with a negative prompt"

    def ways(self, evidence: Evidence) -> Sequence[Way]:
        from erasediff_lora.evaluation.pictures import painter

        negative = avoided(evidence)
        return [
            Way(
                "with negative prompt",
                painter(evidence.candidates.base.denoiser, negative),
                {"negative": negative},
            )
        ]
