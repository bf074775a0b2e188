"""Fields that used to have other names, which recipes and flags may still use."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from erasediff_lora.errors import Problem
from erasediff_lora.recipe.yaml_io import overlay

RENAMED: dict[str, str] = {
    "evaluation.clip": "evaluation.clip_score.weights",
    "evaluation.features": "evaluation.distances.features",
    "evaluation.real_images": "evaluation.distances.real_images",
    "evaluation.nudity_detector": "evaluation.nudity.detector",
    "evaluation.strengths": "evaluation.strength_sweep.strengths",
    "evaluation.sweep_samples": "evaluation.strength_sweep.samples",
    "evaluation.paraphrase_samples": "evaluation.paraphrases.samples",
}
"""Dotted name that a field once had -> its name."""

log = logging.getLogger(__name__)
_ABSENT = object()


def current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """A recipe's values under the names that fields have now, and complaints about those given under both names."""
    current, problems = deepcopy(dict(values)), []
    for old, new in RENAMED.items():
        value = _pop(current, old)
        if value is _ABSENT:
            continue
        if _has(current, new):
            problems.append(_both(old, value, new))
        else:
            _note(old, new)
            overlay(current, {new: value})
    return current, problems


def current_keys(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The same for values by dotted name."""
    current, problems = dict(overrides), []
    for old in RENAMED.keys() & current.keys():
        new, value = RENAMED[old], current.pop(old)
        if new in current:
            problems.append(_both(old, value, new))
        else:
            _note(old, new)
            current[new] = value
    return current, problems


def _both(old: str, value: object, new: str) -> Problem:
    return Problem(old, value, f"is now called {new}, which is given as well.", "Keep that one.")


def _note(old: str, new: str) -> None:
    log.warning("%s is now called %s", old, new)


def _has(values: Any, dotted: str) -> bool:
    for name in dotted.split("."):
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _pop(values: dict[str, Any], dotted: str) -> Any:
    if not _has(values, dotted):
        return _ABSENT
    *parents, last = dotted.split(".")
    for name in parents:
        values = values[name]
    return values.pop(last)
