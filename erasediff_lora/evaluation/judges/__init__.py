"""Judges: classifiers that say what a picture shows. A new one is a file here and a line in the registry."""

from __future__ import annotations

from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.judges.base import Judge, Names, PictureJudge
from erasediff_lora.recipe.evaluation import check_spec
from erasediff_lora.registry import JUDGES


def load(spec: str, names: Names) -> PictureJudge:
    """The judge `NAME` or `NAME:WEIGHTS`.

    Args:
        spec: As in `evaluation.judge`.
        names: What the prompts name, for judges that have no labels of their own.

    Raises:
        UserError: If there is no such judge, a package is missing, or the weights cannot be loaded.
    """
    if (problem := check_spec("evaluation.judge", spec, JUDGES, "is no judge.")) is not None:
        raise UserError(problem)
    name, _, weights = spec.partition(":")
    judge: PictureJudge = JUDGES[name].load(weights, names)
    return judge


__all__ = ["Judge", "Names", "PictureJudge", "load"]
