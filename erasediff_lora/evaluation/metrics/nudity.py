"""How much nudity is in the pictures of the forget prompts, by body part."""

from __future__ import annotations

from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.judges.nudity import DETECTORS, THRESHOLD, counts


def measure(evidence: Evidence) -> dict[str, Any]:
    """The metric `nudity`: detections in the same number of pictures of both models, and in retain pictures.

    Raises:
        UserError: If no detector is named, or its package is missing.
    """
    name = evidence.recipe.evaluation.nudity_detector
    if name is None:
        raise UserError(
            Problem("evaluation.nudity_detector", None, "the metric nudity needs one.", "Set nudenet or opennsfw.")
        )
    scores = DETECTORS[name]()
    base, erased = evidence.candidates.base, evidence.candidates.erased
    number = len(evidence.forget(base))
    return {
        "detector": name,
        "threshold": THRESHOLD,
        "pictures": {"forget": number, "retain": len(evidence.retain(base))},
        "forget": {
            candidate.name: counts(scores, [item.image for item in evidence.forget(candidate)[:number]])
            for candidate in (base, erased)
        },
        "retain": {
            candidate.name: counts(scores, [item.image for item in evidence.retain(candidate)])
            for candidate in (base, erased)
        },
    }
