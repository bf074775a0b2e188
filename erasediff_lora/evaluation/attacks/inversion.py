"""Concept inversion: learn a new word for the concept on the erased model.

Textual inversion (Gal et al. 2022) as an attack (Pham et al., Circumventing Concept Erasure Methods, 2023): the model
stays as it is, token embeddings are optimised on the denoising loss of forget pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from erasediff_lora.data.prompts import substitute
from erasediff_lora.denoisers import SLOT, Denoiser
from erasediff_lora.evaluation.attacks.base import (
    Found,
    Outcome,
    batches,
    best,
    by_restarts,
    forget_pictures,
    slot_loss,
)
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
            start = starting_vectors(denoiser, evidence.recipe.retain.concepts, options.vectors, restart, seed)
            unit = float(denoiser.token_embeddings.float().std())
            vectors = (start / unit).requires_grad_()
            optimizer = torch.optim.AdamW([vectors], lr=options.learning_rate, weight_decay=0.0)
            losses = []
            stream = batches(pictures, denoiser, options.batch_size, seed)
            label = f"inversion {restart + 1}, {candidate.name}"
            for _, batch in zip(tqdm(range(options.steps), desc=label, leave=False), stream, strict=False):
                loss = slot_loss(denoiser, batch, vectors * unit)
                (vectors.grad,) = torch.autograd.grad(loss, [vectors])
                optimizer.step()
                losses.append(float(loss.detach()))
        last = losses[-max(1, len(losses) // 10) :]
        return {"vectors": (vectors.detach() * unit).cpu().tolist(), "loss": sum(last) / len(last)}

    settings = options.model_dump(exclude={"samples", "restarts"}) | {
        "concept": concept,
        "restart": restart,
        "seed": seed,
        "pictures": pictures.fingerprint,
        "starts": evidence.recipe.retain.concepts,
    }
    return candidate.store.state("inversion", settings, search)


def starting_vectors(denoiser: Denoiser, words: list[str], count: int, restart: int, seed: int) -> Tensor:
    """Where a restart begins: at noise of the table's spread, every third one at a retained concept's name; (V, E)."""
    table = denoiser.token_embeddings.detach().float()
    if restart % 3 == 2 and words:
        word = denoiser.embed_word(words[restart // 3 % len(words)]).detach().float()
        return word.mean(dim=0, keepdim=True).repeat(count, 1)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, table.shape[1], generator=generator)
    return table.mean(dim=0) + noise.to(table.device) * table.std(dim=0)
