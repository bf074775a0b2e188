"""What needs no training: the base with the concept as negative prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.evaluation.metrics.base import Metric
from erasediff_lora.evaluation.parts import Found, Table
from erasediff_lora.evaluation.shares import interval_text, percent
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.evidence import Evidence

INTRO = (
    "What needs no training: the base with the forgotten concepts as negative prompt, for the same prompts and seeds."
    " It protects nothing that is given away: whoever has the base leaves the negative prompt out."
)


class NegativePromptSettings(Section):
    """The base with the concepts as negative prompt."""

    samples: int = Field(60, ge=1, description="pictures of each kind of prompts")


class NegativePrompt(Metric):
    """Accuracies of the base alone and with the negative prompt."""

    Settings = NegativePromptSettings

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """The accuracies.

        Raises:
            UserError: If there is no judge, or the family draws without negative prompts.
        """
        from erasediff_lora.evaluation.metrics.accuracy import accuracy
        from erasediff_lora.evaluation.pictures import painter

        judge, base = evidence.require_judge(self.name), evidence.candidates.base
        samples, negative = evidence.settings(NegativePromptSettings).samples, ", ".join(evidence.forgotten)
        paint, variant = painter(base.denoiser, negative), {"negative": negative}
        count = evidence.recipe.evaluation.shared(samples, len(evidence.forgotten))
        forget, retain = evidence.forget_prompts[:count], evidence.retain_prompts[:samples]
        plain = (
            base.generate(forget, evidence.forget_seed, "forget"),
            base.generate(retain, evidence.retain_seed, "retain"),
        )
        led = (
            base.generate(forget, evidence.forget_seed, "forget, negative prompt", paint=paint, variant=variant),
            base.generate(retain, evidence.retain_seed, "retain, negative prompt", paint=paint, variant=variant),
        )
        found = accuracy(judge, plain[0], led[0], plain[1], led[1], evidence.concepts)
        names = ("unlearning_accuracy", "retain_accuracy")
        return {"negative": negative, "counted": found["counted"]} | {
            f"{name}{end}": found[f"{name}{end}"] for name in names for end in ("", "_base")
        }

    def tables(self, found: Found) -> list[Table]:
        rows = [
            (label, percent(found[f"{name}_base"]), percent(found[name]), interval_text(found[name], count), str(count))
            for label, name, count in (
                ("forgotten: the concept is not seen", "unlearning_accuracy", found["counted"]["forget"]),
                ("retained: all that is asked for is seen", "retain_accuracy", found["counted"]["retain"]),
            )
        ]
        return [Table(INTRO, ("", "base", "with negative prompt", "95% interval", "pictures"), rows)]

    def rows(self, found: Found) -> dict[str, str | None]:
        return {
            "the base with a negative prompt: forgotten": percent(found["unlearning_accuracy"]),
            "the base with a negative prompt: retained": percent(found["retain_accuracy"]),
        }
