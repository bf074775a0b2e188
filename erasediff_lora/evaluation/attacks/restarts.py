"""Attacks that search for a condition, restart by restart, and keep the best."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from erasediff_lora.evaluation.attacks.base import Attack, Looked, Outcome, best, concept_prompts, looked_at
from erasediff_lora.evaluation.parts import Work
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from torch import Tensor

    from erasediff_lora.data.prompts import Prompt
    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.evaluation.pictures import Drawn, Request
    from erasediff_lora.objectives.condition import Condition as Told
    from erasediff_lora.recipe.evaluation import Evaluation

KEYS = ("clip_l", "clip_g")
"""What ComfyUI calls the two encoders' parts of an embedding; of a single encoder the key is `emb_params`, as A1111 has
it, and as diffusers' `load_textual_inversion(FILE, token=…)` takes it."""


class SearchSettings(Section):
    """How long an attack searches through the denoising loss."""

    steps: int = Field(100, ge=1, description="optimisation steps of a restart")
    restarts: int = Field(2, ge=1, description="starting points; the best one counts")
    batch_size: int = Field(16, ge=1, description="forget pictures a step")
    samples: int = Field(60, ge=1, description="pictures drawn for a restart")


@dataclass(frozen=True)
class Condition:
    """What a search found for a concept.

    Attributes:
        vectors: Token embeddings, (V, E).
        wording: Turns a prompt's text into one with a SLOT for them.
        note: For the report.
        tokens: Rows of the table that the vectors are; None if they are learned.
    """

    vectors: Tensor
    wording: Callable[[str], str]
    note: Any
    tokens: Sequence[int] | None = None

    def told(self, denoiser: Denoiser, texts: Sequence[str]) -> Told:
        """What the network is told of prompts."""
        return denoiser.encode_slots([self.wording(text) for text in texts], self.vectors)

    def exported(self, denoiser: Denoiser) -> dict[str, Tensor]:
        """What the attack's file holds: the embedding by encoder, (V, E) each."""
        encoders: Sequence[str] = getattr(denoiser, "encoders", ())
        widths = [getattr(denoiser.pipeline, name).get_input_embeddings().weight.shape[1] for name in encoders]
        if len(widths) < 2 or sum(widths) != self.vectors.shape[1]:
            return {"emb_params": self.vectors.detach().cpu().contiguous()}
        pieces = self.vectors.detach().cpu().split(widths, dim=1)
        return {name: piece.contiguous() for name, piece in zip(KEYS, pieces, strict=False)}


class Restarts(Attack):
    """An attack whose tries are restarts of one search: subclasses say what a search is."""

    Settings: ClassVar[type[SearchSettings]]
    notes_name: ClassVar[str]
    """What the notes are called in evaluation.json."""

    interchangeable = True

    @abstractmethod
    def search(self, evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> Condition:
        """One search, from the starting point of that number."""
        ...

    def search_all(self, evidence: Evidence, candidate: Candidate, concept: str, restarts: int) -> list[Condition]:
        """All of them; what each finds does not depend on how many there are."""
        return [self.search(evidence, candidate, concept, restart) for restart in range(restarts)]

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        options = evaluation.settings(self.Settings)
        once = Work(drawn=options.samples, trained=options.steps * options.batch_size)
        return once.times(options.restarts * concepts)

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        """Search and draw, restart by restart, every concept of the recipe in turn.

        Raises:
            UserError: If there is no judge.
        """
        label = self.name.replace("_", " ")
        judge, options = evidence.require_judge(label), evidence.settings(self.Settings)
        tries: dict[str, list[Looked]] = {}
        notes: dict[str, Any] = {}
        conditions: dict[tuple[str, str], Condition] = {}
        searched = {name: self.search_all(evidence, candidate, name, options.restarts) for name in evidence.forgotten}
        for restart in range(options.restarts):
            number = f"restart {restart + 1}"
            for concept in evidence.forgotten:
                found = searched[concept][restart]
                notes[f"{concept}, {number}"] = found.note
                conditions[concept, number] = found
                prompts = concept_prompts(evidence, concept, options.samples)
                drawn = _draw_slots(evidence, candidate, prompts, f"{label}, {number}", found)
                tries.setdefault(number, []).extend(looked_at(judge, drawn))
        outcome = best(tries, **{self.notes_name: notes})
        strongest = {name: max(own["tries"], key=own["tries"].get) for name, own in outcome.per_concept.items()}
        return replace(outcome, found={name: conditions[name, number] for name, number in strongest.items()})


def _draw_slots(
    evidence: Evidence, candidate: Candidate, prompts: Sequence[Prompt], label: str, found: Condition
) -> list[Drawn]:
    """Pictures of the prompts with the vectors in the place of SLOT."""
    import torch

    def paint(asked: Request) -> Any:
        with torch.no_grad():
            prompts = found.told(candidate.denoiser, asked.texts)
        return candidate.denoiser.generate(prompts, asked.seeds, asked.sampling, output="pil")

    variant: dict[str, Any] = {
        "wordings": [found.wording(prompt.text) for prompt in prompts],
        "slot": found.vectors.tolist(),
    }
    variant["told_by"] = type(found).__name__
    return candidate.generate(prompts, evidence.spare_seed, label, paint=paint, variant=variant)
