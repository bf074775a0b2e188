"""What distances between sets of pictures are computed in. New features are a file here and a line in the registry.

A distance is named after its features: only Inception's may be called FID.
"""

from __future__ import annotations

from functools import partial

from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.features.base import Extract, Features
from erasediff_lora.evaluation.loading import loading
from erasediff_lora.evaluation.parts import Rehearsal
from erasediff_lora.recipe.evaluation import check_spec
from erasediff_lora.registry import FEATURES, JUDGES

FIELD = "evaluation.distances.features"
DEFAULT = "efficientnet-lite0"


def chosen(asked: str | None, judge: str | None) -> str:
    """The features as they are loaded: those that are asked for, else the judge's own, else the default's.

    Args:
        asked: As a recipe names them; 'judge' are those of its judge, or of the embedded model's where it has none.
        judge: The recipe's.
    """
    name, _, weights = (judge or "").partition(":")
    own = JUDGES[name].features(weights) if judge else None
    return own if own is not None and asked in (None, "judge") else asked or DEFAULT


def shown(spec: str, judge: str | None) -> str:
    """What a report calls loaded features: those of another judge than the recipe's are not 'judge'."""
    is_other = spec == "judge" and (judge or "").partition(":")[0] != "demo"
    return "the embedded model's judge" if is_other else spec.partition(":")[0]


def networks(asked: str | None, judge: str | None) -> dict[str, Rehearsal]:
    """The rehearsal of the features that are chosen, by their name: for `Part.networks`."""
    spec = chosen(asked, judge)
    name, _, weights = spec.partition(":")
    return {f"features {spec}": partial(FEATURES[name].rehearse, weights)}


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


__all__ = ["Extract", "Features", "chosen", "load", "shown"]
