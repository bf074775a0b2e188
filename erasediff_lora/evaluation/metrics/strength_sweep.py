"""What a weaker or stronger adapter does: accuracy and distance over its strength."""

from __future__ import annotations

from typing import Any

from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.metrics.accuracy import kept, share, success
from erasediff_lora.evaluation.metrics.distances import frechet_distance


def measure(evidence: Evidence) -> dict[str, Any]:
    """The metric `strength_sweep`, on the first of the forget and the retain pictures.

    Raises:
        UserError: If there is no judge, or the features cannot be loaded.
    """
    judge = evidence.require_judge("strength_sweep")
    name, extract = evidence.features
    options = evidence.recipe.evaluation
    forget = evidence.forget_prompts[: options.sweep_samples]
    retain = evidence.retain_prompts[: options.sweep_samples]
    reference = extract([item.image for item in evidence.reference()[: len(retain)]])
    rows = []
    for strength in sorted({0.0, 1.0, *options.strengths}):
        candidate = evidence.candidates.at(strength)
        forgotten = candidate.generate(forget, evidence.forget_seed, "forget")
        retained = candidate.generate(retain, evidence.retain_seed, "retain")
        rows.append(
            {
                "strength": strength,
                "unlearning_accuracy": share([not seen for seen in success(judge, forgotten)]),
                "retain_accuracy": share([row[0] for row in kept(judge, retained)]),
                "frechet": frechet_distance(reference, extract([item.image for item in retained])),
            }
        )
    return {"features": name, "samples": {"forget": len(forget), "retain": len(retain)}, "rows": rows}
