"""The last layer of a small classifier."""

from __future__ import annotations

from pathlib import Path

from erasediff_lora import demo
from erasediff_lora.evaluation.features.base import Extract, Features, of_tensors
from erasediff_lora.evaluation.judges.classifier import Classifier, rehearse


class JudgeFeatures(Features):
    """Those of a judge of the kind `classifier`, the demo's if no file is named; 768 of them."""

    @classmethod
    def rehearse(cls, weights: str) -> object:
        return rehearse(Path(weights).expanduser() if weights else demo.JUDGE_FILE)

    @classmethod
    def load(cls, weights: str) -> Extract:
        network = Classifier.load(Path(weights).expanduser() if weights else demo.JUDGE_FILE)
        return of_tensors(network.features, network.size)
