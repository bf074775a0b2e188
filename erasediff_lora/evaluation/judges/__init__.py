"""Judges: classifiers that say what a picture shows. A new one is a file here and a line in JUDGES."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from erasediff_lora import demo
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.evaluation.judges.base import Names, PictureJudge
from erasediff_lora.evaluation.judges.classifier import ClassifierJudge
from erasediff_lora.evaluation.judges.clip import ClipJudge
from erasediff_lora.evaluation.judges.nudity import NudityJudge, nudenet_scores, opennsfw_scores
from erasediff_lora.evaluation.judges.torchvision import TorchvisionJudge
from erasediff_lora.evaluation.judges.transformers import TransformersJudge

JUDGES: dict[str, Callable[[str, Names], PictureJudge]] = {
    "demo": lambda weights, names: ClassifierJudge(demo.JUDGE_FILE),
    "classifier": lambda weights, names: ClassifierJudge(Path(weights)),
    "clip": ClipJudge,
    "transformers": lambda weights, names: TransformersJudge(weights),
    "torchvision": lambda weights, names: TorchvisionJudge(weights),
    "nudenet": lambda weights, names: NudityJudge(nudenet_scores(), names.forget),
    "opennsfw": lambda weights, names: NudityJudge(opennsfw_scores(), names.forget),
}
NEED_WEIGHTS = {"classifier": "FILE", "clip": "FOLDER", "transformers": "FOLDER", "torchvision": "resnet50"}


def check(spec: str) -> Problem | None:
    """What is wrong with `NAME` or `NAME:WEIGHTS`, as far as can be told without loading."""
    name, _, weights = spec.partition(":")
    if name not in JUDGES:
        return Problem("evaluation.judge", spec, "is no judge.", nearest(name, JUDGES))
    if name in NEED_WEIGHTS and not weights:
        return Problem("evaluation.judge", spec, "names no weights.", f"Write {name}:{NEED_WEIGHTS[name]}.")
    return None


def load(spec: str, names: Names) -> PictureJudge:
    """The judge `NAME` or `NAME:WEIGHTS`.

    Args:
        spec: As in `evaluation.judge`.
        names: What the prompts name, for judges that have no labels of their own.

    Raises:
        UserError: If there is no such judge, a package is missing, or the weights cannot be loaded.
    """
    if (problem := check(spec)) is not None:
        raise UserError(problem)
    name, _, weights = spec.partition(":")
    return JUDGES[name](weights, names)


__all__ = ["JUDGES", "Names", "PictureJudge", "check", "load"]
