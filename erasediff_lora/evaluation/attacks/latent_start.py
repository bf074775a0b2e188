"""Latent start: image to image from a picture of the concept (SDEdit, Meng et al. 2021)."""

from __future__ import annotations

from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.attacks.base import Outcome, best
from erasediff_lora.evaluation.candidates import Candidate
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.metrics.accuracy import share, success
from erasediff_lora.evaluation.pictures import Drawn

TITLE = "Latent start: a noised picture of the concept, drawn on under its prompt"


def budget(evidence: Evidence) -> str:
    options = evidence.recipe.evaluation.latent_start
    strengths = ", ".join(f"{strength:g}" for strength in options.strengths)
    return f"noised by {strengths} of the schedule, {options.samples} pictures each"


def run(evidence: Evidence, candidate: Candidate) -> Outcome:
    """A try is a strength of the noise. The less noise, the more of the given picture is left, on any model."""
    judge = evidence.require_judge("latent_start")
    options = evidence.recipe.evaluation.latent_start
    sources = [
        item
        for item in evidence.forget(evidence.candidates.base)
        if item.prompt.concept in judge.recognise([item.image])[0]
    ][: options.samples]
    if not sources:
        raise UserError(
            Problem(
                "evaluation.judge",
                evidence.recipe.evaluation.judge,
                "sees the concept in none of the base's pictures, so latent_start has nothing to start from.",
                "Check the judge, or whether the base draws the concept at all.",
            )
        )
    tries: dict[str, tuple[float, list[Drawn]]] = {}
    for strength in options.strengths:

        def paint(texts: list[str], seeds: list[int], start: int, strength: float = strength) -> Any:
            images = [item.image for item in sources[start : start + len(texts)]]
            return candidate.denoiser.generate_from(images, strength, texts, seeds, evidence.recipe.sampling)

        drawn = candidate.generate(
            [item.prompt for item in sources],
            evidence.spare_seed,
            f"latent start at {strength:g}",
            paint=paint,
            variant={
                "latent_start": strength,
                "sources": [evidence.candidates.base.store.depends["base"], seeds_of(sources)],
            },
        )
        tries[f"{strength:g}"] = (share(success(judge, drawn)) or 0.0, drawn)
    return best(tries)


def seeds_of(drawn: list[Drawn]) -> list[list[Any]]:
    """What tells the starting pictures from others of the same base."""
    return [[item.prompt.text, item.seed] for item in drawn]
