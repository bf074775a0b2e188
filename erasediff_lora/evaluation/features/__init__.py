"""What distances between sets of pictures are computed in. New features are a file here and a line in the registry.

A distance is named after its features: only Inception's may be called FID.
"""

from __future__ import annotations

from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.features.base import Extract, Features
from erasediff_lora.evaluation.loading import loading
from erasediff_lora.recipe.evaluation import check_spec
from erasediff_lora.registry import FEATURES

FIELD = "evaluation.distances.features"


def load(spec: str) -> Extract:
    """The features `NAME` or `NAME:WEIGHTS`.

    Raises:
        UserError: If there are none of that name, a package is missing, or the weights cannot be loaded.
    """
    if (problem := check_spec(FIELD, spec, FEATURES, "are no features.")) is not None:
        raise UserError(problem)
    name, _, weights = spec.partition(":")
    with loading(FIELD, spec, FEATURES[name].extra):
        extract: Extract = FEATURES[name].load(weights)
    return extract


__all__ = ["Extract", "Features", "load"]
