"""What would make a run take half the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from erasediff_lora.errors import UserError
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.yaml_io import overlay

HALF = 0.5
FEWEST_STEPS, FEWEST_SAMPLING_STEPS, FEWEST_PICTURES = 20, 10, 32
"""Below which no halving is suggested."""


def options(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Changes of a recipe that save time, what costs the result least first."""
    evaluation, training = recipe.evaluation, recipe.training
    if evaluation.attacks:
        yield {"evaluation.attacks": []}
    if min(evaluation.forget_samples, evaluation.retain_samples) // 2 >= FEWEST_PICTURES:
        yield {
            "evaluation.forget_samples": evaluation.forget_samples // 2,
            "evaluation.retain_samples": evaluation.retain_samples // 2,
        }
    for name in ("forget", "retain"):
        data = getattr(recipe, name)
        if data.images is None and data.count // 2 >= FEWEST_PICTURES:
            yield {f"{name}.count": data.count // 2}
    if recipe.sampling.steps // 2 >= FEWEST_SAMPLING_STEPS:
        yield {"sampling.steps": recipe.sampling.steps // 2}
    if recipe.adversary.pool:
        yield {"adversary.refresh_every": recipe.adversary.refresh_every * 2}
    if isinstance(training.steps, int) and training.steps // 2 >= FEWEST_STEPS:
        yield {"training.steps": training.steps // 2}


def changed(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """The recipe with dotted fields changed."""
    return Recipe.parse(overlay(recipe.model_dump(mode="json"), overrides))


def half(recipe: Recipe, seconds: Callable[[Recipe], float]) -> tuple[dict[str, Any], float] | None:
    """A few changes under which a run takes half the time, and that time; None if all of them do not suffice.

    Args:
        recipe: The run.
        seconds: How long a recipe takes.
    """
    wanted = HALF * seconds(recipe)

    def cost(chosen: Sequence[dict[str, Any]]) -> float:
        try:
            return seconds(changed(recipe, _together(chosen)))
        except UserError:  # fewer pictures than concepts, say: such a change is no way
            return math.inf

    gains = sorted((cost([option]), number, option) for number, option in enumerate(options(recipe)))
    chosen: list[dict[str, Any]] = []
    for _, _, option in gains:  # the one that saves most is tried first
        chosen.append(option)
        if cost(chosen) <= wanted:
            break
    else:
        return None
    for option in chosen[:-1]:
        fewer = [other for other in chosen if other is not option]
        if cost(fewer) <= wanted:
            chosen = fewer
    return _together(chosen), cost(chosen)


def _together(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for option in chosen for name, value in option.items()}
