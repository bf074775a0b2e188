"""What needs no training: the base led away from the concept by safe latent diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.metrics.baselines import Baseline, BaselineSettings, Way, avoided
from erasediff_lora.evaluation.parts import Work

if TYPE_CHECKING:
    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Request
    from erasediff_lora.recipe.evaluation import Evaluation


class SafeLatentDiffusionSettings(BaselineSettings):
    """Safe latent diffusion (Schramowski et al., 2023) on the base."""

    strengths: list[Literal["weak", "medium", "strong", "max"]] = Field(
        ["strong", "max"], min_length=1, description="configurations of the paper"
    )
    concept: str | None = Field(None, description="what is led away from, in words; omit for the forgotten concepts")


class SafeLatentDiffusion(Baseline):
    """A way is a configuration of the paper."""

    Settings = SafeLatentDiffusionSettings
    intro = (
        "What needs no training: the base led away from the forgotten concepts by safe latent diffusion (Schramowski et"
        " al., 2023), for the same prompts and seeds. It protects nothing that is given away: whoever has the base"
        " leaves it out. Its warm-up is counted in steps, of the 50 that its authors take."
    )
    called = "the base with safe latent diffusion"

    def ways(self, evidence: Evidence) -> Sequence[Way]:
        from dataclasses import asdict

        from erasediff_lora.denoisers.safe_latent import STRENGTHS

        options = evidence.settings(SafeLatentDiffusionSettings)
        concept = options.concept or avoided(evidence)
        return [
            Way(
                f"SLD-{strength}",
                partial(_paint, evidence.candidates.base.denoiser, concept, strength),
                {"safe_latent": [concept, asdict(STRENGTHS[strength])]},
            )
            for strength in dict.fromkeys(options.strengths)
        ]

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        return super().work(evaluation, concepts).times(len(evaluation.settings(SafeLatentDiffusionSettings).strengths))

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        options = evidence.settings(SafeLatentDiffusionSettings)
        return super().measure(evidence) | {"avoided": options.concept or avoided(evidence)}


def _paint(denoiser: Denoiser, concept: str, strength: str, asked: Request) -> Any:
    """Pictures that are led away from the concept.

    Raises:
        UserError: If the family guides otherwise, or the pictures are drawn without guidance.
    """
    from erasediff_lora.denoisers.safe_latent import STRENGTHS, safely
    from erasediff_lora.evaluation.pictures import painter

    if denoiser.rows_drawn(asked.sampling.guidance) < 2:
        what = "draws without classifier-free guidance, which safe latent diffusion acts on."
        remedy = "Leave safe_latent_diffusion out of evaluation.metrics."
        raise UserError(Problem("sampling.guidance", asked.sampling.guidance, what, remedy))
    with safely(denoiser, concept, STRENGTHS[strength]):
        return painter(denoiser)(asked)
