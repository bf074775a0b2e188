"""What the networks of an evaluation that look at pictures take: they do so without weights, on the meta device."""

from __future__ import annotations

from functools import partial

from erasediff_lora.evaluation.metrics import metric
from erasediff_lora.evaluation.parts import Rehearsal
from erasediff_lora.recipe.evaluation import Evaluation
from erasediff_lora.registry import JUDGES


def rehearsals(evaluation: Evaluation) -> dict[str, Rehearsal]:
    """Of everything that the evaluation looks at pictures with, each once: its name in the recipe -> its rehearsal."""
    found: dict[str, Rehearsal] = {}
    if evaluation.judge is not None:
        name, _, weights = evaluation.judge.partition(":")
        found[evaluation.judge] = partial(JUDGES[name].rehearse, weights)
    for part in map(metric, evaluation.metrics):
        found |= part.networks(evaluation)
    return found
