"""An evaluation.json, through the metrics and attacks that its numbers come from.

It may be of an older version, of a stranger, or of a part that is not installed here: what cannot be understood is
shown as it is, or left out, and the rest is shown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from erasediff_lora.evaluation import attacks, metrics
from erasediff_lora.evaluation.attacks import Attack
from erasediff_lora.evaluation.metrics import Metric, Recognition
from erasediff_lora.evaluation.parts import Found, Part
from erasediff_lora.evaluation.survival import Hardship
from erasediff_lora.registry import SURVIVAL

if TYPE_CHECKING:
    from erasediff_lora.evaluation.charts import Chart

log = logging.getLogger(__name__)
T = TypeVar("T")


def measured(result: Mapping[str, Any]) -> Iterator[tuple[Metric, Found]]:
    """Its metrics, each with its numbers."""
    for name, found in result["metrics"].items():
        yield metrics.metric(name), found


def attacked(result: Mapping[str, Any]) -> Iterator[tuple[Attack, Found]]:
    """Its attacks, each with its entry."""
    for name, found in result["attacks"].items():
        yield attacks.attack(name), found


def survived(result: Mapping[str, Any]) -> Iterator[tuple[Hardship, Found]]:
    """What it was to outlive, each with its entry; of an earlier version nothing."""
    entries = result.get("survival")
    for name, found in entries.items() if isinstance(entries, Mapping) else ():
        if name in SURVIVAL:
            yield SURVIVAL[name](name), found


def asked(part: Part, question: Callable[..., T], *given: Any, otherwise: T) -> T:
    """What a part says of numbers from a file; `otherwise` if it does not understand them."""
    try:
        return question(*given)
    except Exception as error:
        log.warning("the numbers of %s are not as expected (%s: %s)", part.name, type(error).__name__, error)
        return otherwise


def charts_of(part: Part, numbers: Found) -> Sequence[Chart]:
    """Those that a part draws of its numbers."""
    nothing: Sequence[Chart] = ()
    return asked(part, part.charts, numbers, otherwise=nothing)


def recognition(result: Mapping[str, Any]) -> Recognition | None:
    """What the judge saw, of the first metric that tells it."""
    told = (asked(metric, metric.recognition, found, otherwise=None) for metric, found in measured(result))
    return next((seen for seen in told if seen is not None), None)


def damage(result: Mapping[str, Any]) -> float | None:
    """How far retained pictures moved, of the first metric that tells it."""
    told = (asked(metric, metric.damage, found, otherwise=None) for metric, found in measured(result))
    return next((distance for distance in told if distance is not None), None)
