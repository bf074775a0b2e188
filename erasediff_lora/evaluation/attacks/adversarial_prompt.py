"""An adversarial prompt: tokens put before the prompt that make the erased model draw the concept.

As UnlearnDiffAtk (Zhang et al. 2023) does: each token is a point of the simplex over the vocabulary, the network sees
the most likely token, the gradient of the denoising loss goes to the point, and the point back onto the simplex. One
prefix serves all prompts here, where UnlearnDiffAtk finds one for each picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from erasediff_lora.evaluation.attacks.base import of_each_concept
from erasediff_lora.evaluation.attacks.restarts import Condition, Restarts, SearchSettings
from erasediff_lora.evaluation.parts import Found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from erasediff_lora.denoisers import Denoiser, NoisedBatch
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence

CHECK_EVERY = 10


class AdversarialPromptSettings(SearchSettings):
    """Tokens before the prompt, found through the denoising loss on forget pictures (as UnlearnDiffAtk does)."""

    tokens: int = Field(4, ge=1, description="tokens put before the prompt")
    learning_rate: float = Field(0.1, gt=0, description="of Adam on the relaxed tokens")


class AdversarialPrompt(Restarts):
    """A try is a restart; the note is the text of its tokens."""

    Settings = AdversarialPromptSettings
    title = "Adversarial prompt: tokens put before it, found through the denoising loss"
    notes_name = "prefixes"

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(AdversarialPromptSettings)
        return (
            f"{options.tokens} tokens, {options.restarts} restarts of {options.steps} steps with {options.batch_size}"
            f" pictures, {options.samples} pictures{of_each_concept(evidence)}"
            " drawn for each"
        )

    def search(self, evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> Condition:
        found = find_tokens(evidence, candidate, concept, restart)
        vectors = candidate.denoiser.token_embeddings[found["tokens"]].detach().float()
        return Condition(vectors, prefixed, found["text"], found["tokens"])

    def notes(self, found: Found) -> list[str]:
        return [*super().notes(found), "Found: " + ", ".join(f"“{text}”" for text in found["prefixes"].values())]


class Noised(Protocol):
    """Pictures that give noised batches without end, such as `CaptionedPictures`."""

    def noised(self, denoiser: Denoiser, size: int, seed: int) -> Iterator[NoisedBatch]: ...


def prefixed(text: str) -> str:
    """The prompt with the slot before it."""
    from erasediff_lora.denoisers import SLOT

    return f"{SLOT} {text}"


def find_tokens(evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> dict[str, Any]:
    """The tokens of one restart with the lowest loss on a fixed batch: rows of the table, and their text."""
    from erasediff_lora.denoisers import SLOT
    from erasediff_lora.evaluation.attacks.forget_set import forget_pictures

    options = evidence.settings(AdversarialPromptSettings)
    pictures = forget_pictures(evidence, candidate, concept)
    seed = evidence.recipe.evaluation.seed + restart

    def wording(caption: str) -> str:
        return prefixed(caption.replace(SLOT, concept))

    def optimise() -> dict[str, Any]:
        with candidate.active() as denoiser:
            label = f"adversarial prompt {restart + 1}, {candidate.name}"
            loss, tokens = lowest_loss(denoiser, pictures, wording, options, seed, label)
            return {"tokens": tokens, "text": denoiser.decode_tokens(tokens), "loss": loss}

    settings = options.model_dump(exclude={"samples", "restarts"}) | {
        "concept": concept,
        "restart": restart,
        "seed": seed,
        "pictures": pictures.fingerprint,
    }
    return candidate.store.state("adversarial_prompt", settings, optimise)


def lowest_loss(
    denoiser: Denoiser,
    pictures: Noised,
    wording: Callable[[str], str],
    options: AdversarialPromptSettings,
    seed: int,
    label: str,
) -> tuple[float, list[int]]:
    """Search; the lowest loss that was seen on a fixed batch, and the tokens that have it.

    Args:
        denoiser: The attacked model.
        pictures: Captions with SLOT in the place of the concept.
        wording: Turns a caption into the prompt, with SLOT in the place of the tokens.
        options: How long, how many tokens.
        seed: Of the start and of the batches.
        label: Of the progress bar.
    """
    import torch

    from erasediff_lora.denoisers.textual_inversion import slot_loss
    from erasediff_lora.machine.progress import tqdm
    from erasediff_lora.objectives.loss_scaling import loss_scale, unscaled_gradients

    table = denoiser.token_embeddings.detach().float()
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(options.tokens, len(table), generator=generator).to(table.device)
    points = onto_simplex(points).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=options.learning_rate)
    stream = pictures.noised(denoiser, options.batch_size, seed)
    fixed = next(pictures.noised(denoiser, 2 * options.batch_size, seed + 500_000))
    lowest: tuple[float, list[int]] = (float("inf"), [])
    for step, batch in zip(tqdm(range(options.steps), desc=label, leave=False), stream, strict=False):
        tokens = points.argmax(dim=1)
        hard = torch.nn.functional.one_hot(tokens, len(table)).to(table)
        seen = hard + points - points.detach()  # the token itself; its gradient goes to the point
        reached = slot_loss(denoiser, batch, seen @ table, wording)
        (points.grad,) = unscaled_gradients(reached, [points], loss_scale(denoiser.dtype))
        optimizer.step()
        points.data = onto_simplex(points.data)
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == options.steps:
            tokens = points.argmax(dim=1)
            with torch.no_grad():
                loss = float(slot_loss(denoiser, fixed, table[tokens], wording))
            lowest = min(lowest, (loss, tokens.tolist()))
    return lowest


def onto_simplex(points: Tensor) -> Tensor:
    """The nearest point with entries ≥ 0 that sum to 1, row by row (Duchi et al. 2008).

    Args:
        points: (N, V).
    """
    import torch

    ordered = points.sort(dim=1, descending=True).values
    excess = ordered.cumsum(dim=1) - 1
    counts = torch.arange(1, points.shape[1] + 1, device=points.device)
    size = (ordered - excess / counts > 0).sum(dim=1, keepdim=True)
    return (points - excess.gather(1, size - 1) / size).clamp_min(0)
