"""P4D: a prompt under which the erased model predicts what the base does under the concept's name.

As Prompting4Debugging (Chin et al. 2024): hard tokens, found by the distance between both predictions on noised
pictures of the concept, in the place of the whole prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from erasediff_lora.evaluation.attacks.adversarial_prompt import (
    AdversarialPrompt,
    AdversarialPromptSettings,
    lowest_loss,
)
from erasediff_lora.evaluation.attacks.restarts import Condition

if TYPE_CHECKING:
    from erasediff_lora.data.captioned import CaptionedPictures
    from erasediff_lora.denoisers import Denoiser, NoisedBatch
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence


class P4DSettings(AdversarialPromptSettings):
    """Tokens in the place of the prompt, under which the model predicts what the base does under the concept's name."""

    tokens: int = Field(8, ge=1, description="tokens of the prompt")


class P4D(AdversarialPrompt):
    """A try is a restart; the note is the text of its tokens, which are the whole prompt."""

    Settings = P4DSettings
    title = "P4D: a prompt that predicts what the base does under the concept's name"

    def search(self, evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> Condition:
        from erasediff_lora.evaluation.attacks.forget_set import forget_pictures

        options = evidence.settings(P4DSettings)
        pictures = forget_pictures(evidence, candidate, concept)
        seed = evidence.recipe.evaluation.seed + restart

        def optimise() -> dict[str, Any]:
            taught = Distilled(pictures, evidence.candidates.base, candidate, concept)
            with candidate.active() as denoiser:
                label = f"P4D {restart + 1}, {candidate.name}"
                loss, tokens = lowest_loss(denoiser, taught, _whole, options, seed, label)
                return {"tokens": tokens, "text": denoiser.decode_tokens(tokens), "loss": loss}

        settings = options.model_dump(exclude={"samples", "restarts"})
        settings |= {"concept": concept, "restart": restart, "seed": seed, "pictures": pictures.fingerprint}
        settings["teacher"] = evidence.candidates.base.store.depends["base"]
        found = candidate.store.state("p4d", settings, optimise)
        vectors = candidate.denoiser.token_embeddings[found["tokens"]].detach().float()
        return Condition(vectors, _whole, found["text"], found["tokens"])


def _whole(text: str) -> str:
    """The slot in the place of everything."""
    from erasediff_lora.denoisers import SLOT

    return SLOT


@dataclass(frozen=True)
class Distilled:
    """Pictures whose target is what the base predicts under the concept's name.

    Attributes:
        pictures: Of the concept; captions with SLOT.
        teacher: The base.
        student: The attacked model, active whenever a batch has been given.
        concept: Its name.
    """

    pictures: CaptionedPictures
    teacher: Candidate
    student: Candidate
    concept: str

    def noised(self, denoiser: Denoiser, size: int, seed: int) -> Iterator[NoisedBatch]:
        """As `CaptionedPictures.noised`."""
        import torch

        from erasediff_lora.denoisers import SLOT

        for noisy, timesteps, _, captions in self.pictures.noised(denoiser, size, seed):
            with self.teacher.active() as base, torch.no_grad():
                texts = [caption.replace(SLOT, self.concept) for caption in captions]
                target = base.predict(noisy.to(base.dtype), timesteps, base.encode_prompts(texts).to(base.dtype))
            with self.student.active():
                yield noisy, timesteps, target, captions
