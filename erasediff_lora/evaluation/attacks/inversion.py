"""Concept inversion: learn a new word for the concept on the erased model.

Textual inversion (Gal et al. 2022) as an attack (Pham et al., Circumventing Concept Erasure Methods, 2023): the model
stays as it is, token embeddings are optimised on the denoising loss of forget pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from erasediff_lora.evaluation.attacks.base import of_each_concept
from erasediff_lora.evaluation.attacks.restarts import Condition, Restarts, SearchSettings
from erasediff_lora.recipe.adversary import IN_SPACE, SearchedIn, check_space, searched_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.denoisers.textual_inversion import SearchSpace
    from erasediff_lora.errors import Problem
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.objectives.condition import Condition as Told
    from erasediff_lora.recipe import Recipe
    from erasediff_lora.recipe.checks import Sections
    from erasediff_lora.recipe.evaluation import Evaluation

SMALL = 64 * 2**20
"""Bytes of weights of a network that a batch of one search leaves idle."""


class LearnedSettings(SearchSettings):
    """What is learned, and for how long."""

    vectors: int = Field(1, ge=1, description="learned token embeddings")
    steps: int = Field(200, ge=1, description="optimisation steps of a restart")
    restarts: int = Field(3, ge=1, description="starting points; the best one counts")
    learning_rate: float = Field(0.05, gt=0, description="of AdamW, in units of the embeddings' spread")


class InversionSettings(LearnedSettings):
    """Concept inversion: a new word, learned from forget pictures, that brings the concept back."""

    space: SearchedIn = Field(
        "auto", description=f"{IN_SPACE}; auto: tokens, or outputs where the family's encoders take gigabytes"
    )

    def check(self, sections: Sections) -> list[Problem]:
        return check_space("evaluation.inversion.space", self.space, sections.model)


class Inversion(Restarts):
    """A try is a restart; the note is the mean loss of the last tenth of its steps."""

    Settings: ClassVar[type[LearnedSettings]] = InversionSettings
    title = "Concept inversion: a new word, learned from pictures of the concept"
    notes_name = "loss"

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(self.Settings)
        return (
            f"{options.vectors} embedding(s), {options.restarts} restarts of {options.steps} steps with"
            f" {options.batch_size} pictures, {options.samples} pictures{of_each_concept(evidence)}"
            " drawn for each"
        )

    def searched_at_once(self, evaluation: Evaluation, network: nn.Module) -> int:
        options = evaluation.settings(self.Settings)
        return options.batch_size * (options.restarts if is_small(network) else 1)

    def search(self, evidence: Evidence, candidate: Candidate, concept: str, restart: int) -> Condition:
        return self.search_all(evidence, candidate, concept, restart + 1)[restart]

    def search_all(self, evidence: Evidence, candidate: Candidate, concept: str, restarts: int) -> list[Condition]:
        import torch

        from erasediff_lora.data.prompts import substitute
        from erasediff_lora.denoisers import SLOT

        space = self.space(evidence, candidate.recipe)
        kind = Condition if space == "tokens" else Behind
        return [
            kind(torch.tensor(found["vectors"]), lambda text: substitute(text, concept, SLOT), found["loss"])
            for found in learn(evidence, candidate, concept, restarts, evidence.settings(self.Settings), space)
        ]

    def space(self, evidence: Evidence, recipe: Recipe) -> str:
        """Where it searches: 'tokens' or 'outputs'."""
        return searched_in(evidence.settings(InversionSettings).space, recipe.model)


@dataclass(frozen=True)
class Behind(Condition):
    """Tokens of the text encoder's output, which stand behind those of the prompt as it is."""

    def told(self, denoiser: Denoiser, texts: Sequence[str]) -> Told:
        told: Told = space_of("outputs", denoiser, texts, "").told(texts, self.vectors.to(denoiser.device))
        return told

    def exported(self, denoiser: Denoiser) -> dict[str, Tensor]:
        return {"encoder_outputs": self.vectors.detach().cpu().contiguous()}


def space_of(name: str, denoiser: Denoiser, captions: Sequence[str], concept: str) -> SearchSpace:
    """Where is searched for conditions of captions with SLOT in the place of the concept."""
    from erasediff_lora.denoisers import SLOT
    from erasediff_lora.denoisers.textual_inversion import Outputs, Tokens

    if name == "tokens":
        return Tokens(denoiser)
    texts = list(dict.fromkeys(captions))
    encoded = denoiser.encode_prompts([text.replace(SLOT, concept) for text in texts])
    return Outputs(lambda asked: encoded[[texts.index(text) for text in asked]], encoded)


def is_small(network: nn.Module) -> bool:
    """Whether it gains by seeing the pictures of several searches together; to a larger one a batch is enough."""
    return sum(parameter.nbytes for parameter in network.parameters()) <= SMALL


def learn(
    evidence: Evidence, candidate: Candidate, concept: str, restarts: int, options: LearnedSettings, name: str
) -> list[dict[str, Any]]:
    """Of each restart the vectors, and the mean loss of the last tenth of its steps.

    Args:
        evidence: The forget pictures, and the seed.
        candidate: The attacked model.
        concept: What it is to draw again.
        restarts: How many.
        options: Of the search.
        name: Of the space that is searched in.
    """
    from erasediff_lora.denoisers.textual_inversion import Search, invert
    from erasediff_lora.evaluation.attacks.forget_set import forget_pictures

    pictures = forget_pictures(evidence, candidate, concept)
    first, words = evidence.recipe.evaluation.seed, evidence.recipe.retain.concepts
    made: dict[int, dict[str, Any]] = {}

    def search(restart: int) -> dict[str, Any]:
        """Side by side with those behind it, where that is of use."""
        if restart not in made:
            with candidate.active() as denoiser:
                together = range(restart, restarts if is_small(denoiser.network) else restart + 1)
                space = space_of(name, denoiser, pictures.captions, concept)
                found = invert(
                    denoiser,
                    space,
                    [
                        Search(
                            pictures.noised(denoiser, options.batch_size, first + number),
                            space.start(words, options.vectors, number, first + number),
                        )
                        for number in together
                    ],
                    steps=options.steps,
                    learning_rate=options.learning_rate,
                    label=f"inversion {restart + 1} to {together[-1] + 1}, {candidate.name}",
                )
            for number, (vectors, losses) in zip(together, found, strict=True):
                last = losses[-max(1, len(losses) // 10) :]
                made[number] = {"vectors": vectors.cpu().tolist(), "loss": sum(last) / len(last)}
        return made[restart]

    settings = options.model_dump(exclude={"samples", "restarts", "space"}) | {
        "concept": concept,
        "pictures": pictures.fingerprint,
        "starts": words,
        "space": name,
    }
    return [
        candidate.store.state(
            "inversion", settings | {"restart": restart, "seed": first + restart}, partial(search, restart)
        )
        for restart in range(restarts)
    ]
