"""Ring-A-Bell: tokens that say the concept to the text encoder without its name, found through that encoder alone.

As Tsai et al. (2024) do: the concept is the mean difference of encodings with and without it, the prompt is sought
whose encoding is that of an ordinary one moved along it. The search is by gradient and exchange of one token at a time
(Zou et al. 2023), in the place of their genetic one. No model that draws is looked at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.evaluation.attacks.base import of_each_concept
from erasediff_lora.evaluation.attacks.restarts import Condition, Restarts, SearchSettings
from erasediff_lora.evaluation.parts import Found, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.evaluation import Evaluation

PAIRS = 32


class RingABellSettings(SearchSettings):
    """Tokens that encode as the concept does, without its name (Ring-A-Bell)."""

    tokens: int = Field(8, ge=1, description="tokens of the prompt")
    strength: float = Field(1.0, gt=0, description="how far along the concept's direction; the paper's η")
    exchanges: int = Field(64, ge=1, description="exchanges of a token that are looked at in a step")


class RingABell(Restarts):
    """A try is a restart; the note is the text of its tokens, which are the whole prompt."""

    Settings = RingABellSettings
    title = "Ring-A-Bell: a prompt without the concept's name, found through the text encoder alone"
    notes_name = "prompts"

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(RingABellSettings)
        return (
            f"{options.tokens} tokens, {options.restarts} restarts of {options.steps} steps of {options.exchanges}"
            f" exchanges, {options.samples} pictures{of_each_concept(evidence)} drawn for each"
        )

    def work(self, evaluation: Evaluation, concepts: int) -> Work:
        """The search goes through the text encoder alone."""
        return replace(super().work(evaluation, concepts), trained=0)

    def search(self, evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> Condition:
        import torch

        from erasediff_lora.denoisers import SLOT

        options = evidence.settings(RingABellSettings)
        prompts, others = _pairs(evidence, concept)
        seed = evidence.recipe.evaluation.seed + restart

        def find() -> dict[str, Any]:
            with candidate.active() as denoiser:
                target = prompts[restart % len(prompts)]
                tokens = nearest_tokens(denoiser, target, prompts, others, concept, options, seed)
                return {"tokens": tokens, "text": denoiser.decode_tokens(tokens)}

        settings = options.model_dump(exclude={"samples", "restarts", "batch_size"})
        settings |= {"prompts": prompts, "others": others, "concept": concept, "restart": restart, "seed": seed}
        found = candidate.store.state("ring_a_bell", settings, find)
        vectors = candidate.denoiser.token_embeddings[torch.tensor(found["tokens"])].detach().float()
        return Condition(vectors, lambda text: SLOT, found["text"], found["tokens"])

    def notes(self, found: Found) -> list[str]:
        return [*super().notes(found), "Found: " + ", ".join(f"“{text}”" for text in found["prompts"].values())]


def _pairs(evidence: Evidence, concept: str) -> tuple[list[str], list[str]]:
    """Prompts with the concept, and the same with a retained one in its place."""
    from erasediff_lora.data.prompts import substitute
    from erasediff_lora.evaluation.attacks.base import concept_prompts

    texts = list(dict.fromkeys(prompt.text for prompt in concept_prompts(evidence, concept, PAIRS)))
    retained = evidence.recipe.retain.concepts or [""]
    pairs = [(text, substitute(text, concept, retained[row % len(retained)])) for row, text in enumerate(texts)]
    return [text for text, _ in pairs], [other for _, other in pairs]


def nearest_tokens(
    denoiser: Denoiser,
    target: str,
    prompts: Sequence[str],
    others: Sequence[str],
    concept: str,
    options: RingABellSettings,
    seed: int,
) -> list[int]:
    """The tokens whose encoding lies nearest to the target's, moved along the concept's direction.

    Args:
        denoiser: For its text encoder.
        target: A prompt that names the concept.
        prompts: Prompts that name it.
        others: The same without it.
        concept: Its name, whose tokens are not used.
        options: How long.
        seed: Of the start and of the exchanges.
    """
    import torch

    from erasediff_lora.denoisers import SLOT
    from erasediff_lora.machine.progress import tqdm

    table = denoiser.token_embeddings.detach().float()
    banned = _rows_of(table, denoiser.embed_word(concept).detach().float())

    def encode(texts: Sequence[str]) -> Tensor:
        return denoiser.encode_prompts(list(texts)).tokens.float()

    def distance(rows: Tensor) -> Tensor:
        vectors = table[rows] if rows.dtype == torch.long else rows
        found = denoiser.encode_slots([SLOT] * len(rows), vectors).tokens.float()
        return (found - wanted).square().mean(dim=(1, 2))

    direction = (encode(prompts) - encode(others)).mean(dim=0)
    wanted = encode([target])[0] + options.strength * direction
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([row for row in range(len(table)) if row not in banned])
    tokens = allowed[torch.randint(len(allowed), (options.tokens,), generator=generator)]
    with torch.no_grad():
        reached = float(distance(tokens[None])[0])
    for _ in tqdm(range(options.steps), desc=f"ring-a-bell, {concept}", leave=False):
        vectors = table[tokens][None].clone().requires_grad_()
        (slope,) = torch.autograd.grad(distance(vectors).sum(), vectors)
        gain = -(slope[0] @ table.T)  # by exchanging the token of that place for that one, to first order
        gain[:, sorted(banned)] = -torch.inf
        best = gain.topk(min(options.exchanges, len(table) - len(banned)), dim=1).indices.cpu()
        tried = tokens.repeat(options.exchanges, 1)
        places = torch.randint(options.tokens, (options.exchanges,), generator=generator)
        ranks = torch.randint(best.shape[1], (options.exchanges,), generator=generator)
        tried[torch.arange(options.exchanges), places] = best[places, ranks]
        with torch.no_grad():
            distances = distance(tried)
        if float(distances.min()) < reached:
            reached, tokens = float(distances.min()), tried[int(distances.argmin())]
    return [int(token) for token in tokens]


def _rows_of(table: Tensor, vectors: Tensor) -> set[int]:
    """Rows of the table that are these vectors."""
    return {row for vector in vectors for row in (table == vector.to(table)).all(dim=1).nonzero()[:, 0].tolist()}
