"""Metrics. A new one is a file here, a line in METRICS, and its name in `MetricName`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.metrics import accuracy, clip_score, distances, drift, nudity, strength_sweep

METRICS: dict[str, Callable[[Evidence], dict[str, Any]]] = {
    "accuracy": accuracy.measure,
    "distances": distances.measure,
    "drift": drift.measure,
    "clip_score": clip_score.measure,
    "nudity": nudity.measure,
    "strength_sweep": strength_sweep.measure,
}
