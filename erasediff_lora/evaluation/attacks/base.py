"""What an attack is given and returns, and the restarts that several share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from erasediff_lora.data import sets
from erasediff_lora.data.buckets import by_shape, cut, padded
from erasediff_lora.data.captioned import CaptionedPictures, showing
from erasediff_lora.data.imaging import to_unit_tensor
from erasediff_lora.data.prompts import Prompt, balanced, substitute
from erasediff_lora.denoisers import SLOT, Denoiser
from erasediff_lora.evaluation.candidates import Candidate
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.metrics.accuracy import share, success
from erasediff_lora.evaluation.pictures import Drawn, forget_prompts
from erasediff_lora.recipe.evaluation import Search


@dataclass(frozen=True)
class Outcome:
    """What an attack achieved on one model.

    Attributes:
        success: Share of the pictures in which the judge sees the concept; of the attack's best try.
        tries: The same for each try: restart, strength of the noise, step of the fine-tuning.
        pictures: Those of the best try.
        details: What was found, for the report.
    """

    success: float
    tries: dict[str, float]
    pictures: list[Drawn] = field(repr=False)
    details: dict[str, Any] = field(default_factory=dict)


class Attack(Protocol):
    """A module with these names."""

    TITLE: str
    """What the attacker does, in a few words."""

    def budget(self, evidence: Evidence) -> str:
        """What the attacker may spend, in words."""
        ...

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        """Attack one model.

        Raises:
            UserError: If the attack is impossible with this recipe.
        """
        ...


def best(tries: dict[str, tuple[float, list[Drawn]]], **details: Any) -> Outcome:
    """The outcome of several tries: an attacker looks at all and keeps the best."""
    name = max(tries, key=lambda key: tries[key][0])
    return Outcome(tries[name][0], {key: value for key, (value, _) in tries.items()}, tries[name][1], details)


def forget_pictures(evidence: Evidence, candidate: Candidate, concept: str) -> CaptionedPictures:
    """The recipe's forget set, as far as it shows this concept: the strongest attacker has the eraser's own data.

    Args:
        evidence: The recipe, and the base that draws or encodes the set.
        candidate: The attacked model; one of another base encodes the pictures itself.
        concept: A forgotten concept.

    Raises:
        UserError: If no picture shows it.
    """
    base = evidence.candidates.base
    with base.active() as denoiser:
        encoded = sets.prepare(evidence.recipe, denoiser, "forget")
        texts = [encoded.prompts[row] for row in encoded.captions.tolist()]
        chosen = showing(texts, concept, [name for name in evidence.forgotten if name != concept])
        latents, shapes = encoded.latents[chosen], encoded.shapes[chosen]
        if not _same_autoencoder(denoiser, candidate.denoiser, cut(latents[:1], shapes[0])):
            own: dict[int, Tensor] = {}
            for shape, alike in by_shape(shapes):
                for rows in alike.split(evidence.recipe.sampling.batch_size):
                    pictures = denoiser.decode(cut(latents[rows], shape))
                    pixels = torch.stack([to_unit_tensor(image, image.size) for image in pictures])
                    own |= zip(rows.tolist(), candidate.denoiser.encode_images(pixels).cpu(), strict=True)
            latents, shapes = padded([own[row] for row in range(len(chosen))])
    return CaptionedPictures(latents, shapes, [substitute(texts[index], concept, SLOT) for index in chosen])


def _same_autoencoder(one: Denoiser, other: Denoiser, latents: Tensor) -> bool:
    """Whether both decode the latents to the same picture."""
    if one is other:
        return True
    return one.decode(latents)[0].tobytes() == other.decode(latents)[0].tobytes()


def concept_prompts(evidence: Evidence, concept: str, count: int) -> list[Prompt]:
    """Prompts that name the concept, in equal shares over the templates."""
    named = [prompt for prompt in forget_prompts(evidence.recipe) if prompt.concept == concept]
    return balanced(named, count, evidence.recipe.evaluation.seed)


@dataclass(frozen=True)
class Found:
    """What a search found for a concept.

    Attributes:
        vectors: Token embeddings, (V, E).
        wording: Turns a prompt's text into one with a SLOT for them.
        note: For the report.
    """

    vectors: Tensor
    wording: Callable[[str], str]
    note: Any


def by_restarts(
    evidence: Evidence, candidate: Candidate, options: Search, name: str, search: Callable[[str, int], Found]
) -> tuple[dict[str, tuple[float, list[Drawn]]], dict[str, Any]]:
    """Search anew and draw, restart by restart, every concept of the recipe in turn.

    Args:
        evidence: The judge, and the concepts.
        candidate: The attacked model.
        options: How many restarts, how many pictures.
        name: Of the attack.
        search: Given the concept and the number of the restart.

    Returns:
        Success and pictures of each restart, and the notes.

    Raises:
        UserError: If there is no judge.
    """
    judge = evidence.require_judge(name)
    tries: dict[str, tuple[float, list[Drawn]]] = {}
    notes: dict[str, Any] = {}
    for restart in range(options.restarts):
        shown: list[Drawn] = []
        label = f"restart {restart + 1}"
        for concept in evidence.forgotten:
            found = search(concept, restart)
            notes[f"{concept}, {label}"] = found.note
            prompts = concept_prompts(evidence, concept, options.samples)
            shown += _draw_slots(evidence, candidate, prompts, f"{name}, {label}", found)
        tries[label] = (share(success(judge, shown)) or 0.0, shown)
    return tries, notes


def _draw_slots(
    evidence: Evidence, candidate: Candidate, prompts: Sequence[Prompt], label: str, found: Found
) -> list[Drawn]:
    """Pictures of the prompts with the vectors in the place of SLOT."""

    def paint(texts: list[str], seeds: list[int], start: int) -> Any:
        with torch.no_grad():
            prompts = candidate.denoiser.encode_slots([found.wording(text) for text in texts], found.vectors)
        return candidate.denoiser.generate(prompts, seeds, evidence.recipe.sampling, output="pil")

    variant = {"wordings": [found.wording(prompt.text) for prompt in prompts], "slot": found.vectors.tolist()}
    return candidate.generate(prompts, evidence.spare_seed, label, paint=paint, variant=variant)
