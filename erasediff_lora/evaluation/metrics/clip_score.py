"""How well pictures match their prompts, by CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.clip_model import Clip
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.pictures import Drawn

SMALLEST = 128


def measure(evidence: Evidence) -> dict[str, Any]:
    """The metric `clip_score`, of forget and of retain prompts.

    Raises:
        UserError: If no weights are named, they cannot be loaded, or the base draws pictures too small for CLIP.
    """
    weights = evidence.recipe.evaluation.clip
    base, erased = evidence.candidates.base, evidence.candidates.erased
    side = evidence.recipe.sampling.resolution or base.denoiser.resolution
    if side < SMALLEST:
        raise UserError(
            Problem(
                "evaluation.metrics",
                "clip_score",
                f"means nothing for pictures of {side} px: CLIP was trained on photographs of 224 px and more.",
                "Take it out of evaluation.metrics; the judge's accuracy says what the pictures show.",
            )
        )
    if weights is None:
        raise UserError(
            Problem("evaluation.clip", None, "clip_score needs weights.", "Point it at a CLIPModel's folder or hub id.")
        )
    return {
        kind: {candidate.name: clip_score(weights, pictures(candidate)) for candidate in (base, erased)}
        for kind, pictures in (("forget", evidence.forget), ("retain", evidence.retain))
    } | {"weights": evidence.recipe.evaluation.without_folders()["clip"]}


def clip_score(weights: str, drawn: Sequence[Drawn]) -> float:
    """100 × the mean cosine of picture and prompt, not below 0. By torchmetrics.

    Args:
        weights: Folder or hub id of a CLIPModel with its processor.
        drawn: Pictures with their prompts.

    Raises:
        UserError: If the weights cannot be loaded.
    """
    from torchmetrics.multimodal import CLIPScore

    clip = Clip(weights, "evaluation.clip", weights)
    named: Any = lambda: (clip, clip.processor)  # noqa: E731
    metric = CLIPScore(model_name_or_path=named)
    side = min(drawn[0].image.size)
    for start in range(0, len(drawn), 32):
        batch = drawn[start : start + 32]
        pixels = torch.stack([to_unit_tensor(item.image, side) for item in batch])
        metric.update(((pixels + 1) * 127.5).round().byte(), [item.prompt.text for item in batch])
    return float(metric.compute())
