"""Metrics. A new one is a file here and a line in the registry."""

from __future__ import annotations

from erasediff_lora.evaluation.metrics.base import Metric, Rate, Recognition, ScorePart, Unknown
from erasediff_lora.registry import METRICS


def metric(name: str) -> Metric:
    """The metric of that name; one that shows whatever there is if it is not installed here."""
    found: Metric = METRICS[name](name) if name in METRICS else Unknown(name)
    return found


__all__ = ["Metric", "Rate", "Recognition", "ScorePart", "Unknown", "metric"]
