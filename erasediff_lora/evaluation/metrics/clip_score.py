"""How well pictures match their prompts, by CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.metrics.base import Metric, ScorePart
from erasediff_lora.evaluation.parts import Found, Rehearsal, Table
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn
    from erasediff_lora.recipe.evaluation import Evaluation

SMALLEST = 128
WEIGHTS_FIELD = "evaluation.clip_score.weights"
KINDS = ("forget", "retain")


class ClipScoreSettings(Section):
    """Which CLIP."""

    weights: str | None = Field(None, description="CLIP weights of clip_score: folder or hub id")


class ClipScore(Metric):
    """The match of forget and of retain pictures with their prompts."""

    Settings = ClipScoreSettings

    def available(self, evaluation: Evaluation) -> bool:
        return self.left_open(evaluation) is None

    def left_open(self, evaluation: Evaluation) -> str | None:
        return WEIGHTS_FIELD if evaluation.settings(ClipScoreSettings).weights is None else None

    def require_means(self, evaluation: Evaluation) -> None:
        from erasediff_lora.evaluation.clip_model import Clip

        if (weights := evaluation.settings(ClipScoreSettings).weights) is not None:
            Clip(weights, WEIGHTS_FIELD, weights)

    def networks(self, evaluation: Evaluation) -> Mapping[str, Rehearsal]:
        from erasediff_lora.evaluation.clip_model import rehearse

        weights = evaluation.settings(ClipScoreSettings).weights
        return {} if weights is None else {f"clip:{weights}": partial(rehearse, weights)}

    def measure(self, evidence: Evidence) -> dict[str, Any]:
        """The mean scores of both models.

        Raises:
            UserError: If no weights are named, they cannot be loaded, or the base draws pictures too small for CLIP.
        """
        weights = evidence.settings(ClipScoreSettings).weights
        base, erased = evidence.candidates.base, evidence.candidates.erased
        side = evidence.recipe.sampling.resolution or base.denoiser.resolution
        if side < SMALLEST:
            raise UserError(
                Problem(
                    "evaluation.metrics",
                    self.name,
                    f"means nothing for pictures of {side} px: CLIP was trained on photographs of 224 px and more.",
                    "Take it out of evaluation.metrics; the judge's accuracy says what the pictures show.",
                )
            )
        if weights is None:
            remedy = "Point it at a CLIPModel's folder or hub id."
            raise UserError(Problem(WEIGHTS_FIELD, None, f"{self.name} needs weights.", remedy))
        scores = {
            kind: {candidate.name: clip_score(weights, pictures(candidate)) for candidate in (base, erased)}
            for kind, pictures in zip(KINDS, (evidence.forget, evidence.retain), strict=True)
        }
        return scores | {"weights": evidence.recipe.evaluation.without_folders()["clip_score"]["weights"]}

    def tables(self, found: Found) -> list[Table]:
        shown = [f"{kind} prompts {found[kind]['base']:.2f} to {found[kind]['erased']:.2f}" for kind in KINDS]
        return [Table(f"CLIP score: {', '.join(shown)}.")]

    def score_parts(self, found: Found) -> dict[str, ScorePart]:
        of_base = found["retain"]["base"]
        value = min(found["retain"]["erased"] / of_base, 1.0) if of_base > 0 else 0.0
        return {"prompt match": ScorePart(value, "CLIP score of retained prompts over the base's")}

    def rows(self, found: Found) -> dict[str, str | None]:
        return {f"CLIP score, {kind} prompts": f"{found[kind]['erased']:.2f}" for kind in KINDS}


def clip_score(weights: str, drawn: Sequence[Drawn]) -> float:
    """100 × the mean cosine of picture and prompt, not below 0. By torchmetrics.

    Args:
        weights: Folder or hub id of a CLIPModel with its processor.
        drawn: Pictures with their prompts.

    Raises:
        UserError: If the weights cannot be loaded.
    """
    import torch
    from torchmetrics.multimodal import CLIPScore

    from erasediff_lora.data.imaging import to_unit_tensor
    from erasediff_lora.evaluation.clip_model import Clip

    clip = Clip(weights, WEIGHTS_FIELD, weights)
    named: Any = lambda: (clip, clip.processor)  # noqa: E731
    metric = CLIPScore(model_name_or_path=named)
    side = min(drawn[0].image.size)
    for start in range(0, len(drawn), 32):
        batch = drawn[start : start + 32]
        pixels = torch.stack([to_unit_tensor(item.image, side) for item in batch])
        metric.update(((pixels + 1) * 127.5).round().byte(), [item.prompt.text for item in batch])
    return float(metric.compute())
