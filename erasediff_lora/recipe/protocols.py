"""Protocols in recipes: `evaluation.protocol: NAME` fills the fields that are left open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erasediff_lora.recipe.yaml_io import overlay
from erasediff_lora.registry import PROTOCOLS

FIELD = "evaluation.protocol"


def over_recipe(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides that name a protocol, with its values below those that are given: they replace the recipe's own."""
    name = overrides.get(FIELD)
    if not isinstance(name, str) or name not in PROTOCOLS:
        return dict(overrides)
    own = {f"evaluation.{field}": value for field, value in PROTOCOLS[name].values.items()}
    tables = {
        key for key in own if any(given.startswith(f"{key}.") or key.startswith(f"{given}.") for given in overrides)
    }
    return {key: value for key, value in own.items() if key not in tables} | dict(overrides)


def filled(evaluation: Any) -> Any:
    """A recipe's table `evaluation` with the values of its protocol where it has none."""
    name = evaluation.get("protocol") if isinstance(evaluation, dict) else None
    if not isinstance(name, str) or name not in PROTOCOLS:
        return evaluation
    result: dict[str, Any] = overlay({}, PROTOCOLS[name].values)
    for key, value in evaluation.items():
        inner = result.get(key)
        result[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
