"""Concept inversion: learn a new word for the concept on the erased model.

Textual inversion (Gal et al. 2022) as an attack (Pham et al., Circumventing Concept Erasure Methods, 2023): the model
stays as it is, token embeddings are optimised on the denoising loss of forget pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.evaluation.attacks.base import of_each_concept
from erasediff_lora.evaluation.attacks.restarts import Condition, Restarts, SearchSettings

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence


class InversionSettings(SearchSettings):
    """Concept inversion: a new word, learned from forget pictures, that brings the concept back."""

    vectors: int = Field(1, ge=1, description="learned token embeddings")
    steps: int = Field(200, ge=1, description="optimisation steps of a restart")
    restarts: int = Field(3, ge=1, description="starting points; the best one counts")
    learning_rate: float = Field(0.05, gt=0, description="of AdamW, in units of the embeddings' spread")


class Inversion(Restarts):
    """A try is a restart; the note is the mean loss of the last tenth of its steps."""

    Settings = InversionSettings
    title = "Concept inversion: a new word, learned from pictures of the concept"
    notes_name = "loss"

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(InversionSettings)
        return (
            f"{options.vectors} embedding(s), {options.restarts} restarts of {options.steps} steps with"
            f" {options.batch_size} pictures, {options.samples} pictures{of_each_concept(evidence)}"
            " drawn for each"
        )

    def search(self, evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> Condition:
        import torch

        from erasediff_lora.data.prompts import substitute
        from erasediff_lora.denoisers import SLOT

        found = learn(evidence, candidate, concept, restart)
        return Condition(torch.tensor(found["vectors"]), lambda text: substitute(text, concept, SLOT), found["loss"])


def learn(evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> dict[str, Any]:
    """The embeddings of one restart, and the mean loss of the last tenth of its steps."""
    from erasediff_lora.denoisers.textual_inversion import invert, starting_vectors
    from erasediff_lora.evaluation.attacks.forget_set import forget_pictures

    options = evidence.settings(InversionSettings)
    pictures = forget_pictures(evidence, candidate, concept)
    seed = evidence.recipe.evaluation.seed + restart

    def search() -> dict[str, Any]:
        with candidate.active() as denoiser:
            vectors, losses = invert(
                denoiser,
                pictures.noised(denoiser, options.batch_size, seed),
                starting_vectors(denoiser, evidence.recipe.retain.concepts, options.vectors, restart, seed),
                steps=options.steps,
                learning_rate=options.learning_rate,
                label=f"inversion {restart + 1}, {candidate.name}",
            )
        last = losses[-max(1, len(losses) // 10) :]
        return {"vectors": vectors.cpu().tolist(), "loss": sum(last) / len(last)}

    settings = options.model_dump(exclude={"samples", "restarts"}) | {
        "concept": concept,
        "restart": restart,
        "seed": seed,
        "pictures": pictures.fingerprint,
        "starts": evidence.recipe.retain.concepts,
    }
    return candidate.store.state("inversion", settings, search)
