"""Concept inversion: learn a new word for the concept on the erased model.

Textual inversion (Gal et al. 2022) as an attack (Pham et al., Circumventing Concept Erasure Methods, 2023): the model
stays as it is, token embeddings are optimised on the denoising loss of forget pictures.
"""

from __future__ import annotations

from typing import Any

import torch

from erasediff_lora.data.prompts import substitute
from erasediff_lora.denoisers import SLOT
from erasediff_lora.denoisers.textual_inversion import invert, starting_vectors
from erasediff_lora.evaluation.attacks.base import Found, Outcome, best, by_restarts, forget_pictures
from erasediff_lora.evaluation.candidates import Candidate
from erasediff_lora.evaluation.evidence import Evidence

TITLE = "Concept inversion: a new word, learned from pictures of the concept"


def budget(evidence: Evidence) -> str:
    options = evidence.recipe.evaluation.inversion
    return (
        f"{options.vectors} embedding(s), {options.restarts} restarts of {options.steps} steps with"
        f" {options.batch_size} pictures, {options.samples} pictures drawn for each"
    )


def run(evidence: Evidence, candidate: Candidate) -> Outcome:
    """A try is a restart."""

    def search(concept: str, restart: int) -> Found:
        found = learn(evidence, candidate, concept, restart)
        return Found(torch.tensor(found["vectors"]), lambda text: substitute(text, concept, SLOT), found["loss"])

    tries, losses = by_restarts(evidence, candidate, evidence.recipe.evaluation.inversion, "inversion", search)
    return best(tries, loss=losses)


def learn(evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> dict[str, Any]:
    """The embeddings of one restart, and the mean loss of the last tenth of its steps."""
    options = evidence.recipe.evaluation.inversion
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
