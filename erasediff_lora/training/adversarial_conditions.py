"""The adversarial forget set: conditions that bring the concept back, found and trained against by turns.

An erased name is not an erased concept: concept inversion learns another word for it on the erased model. Here the
attack is part of the data. Every few steps it searches for such a word under the adapter as it is, and from then on a
share of the forget pictures is trained under the words that it has found.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from erasediff_lora.data.captioned import CaptionedPictures
from erasediff_lora.data.micro_batches import MicroBatches
from erasediff_lora.data.prompts import substitute
from erasediff_lora.data.sets import EncodedSet
from erasediff_lora.denoisers import SLOT, Denoiser
from erasediff_lora.denoisers.textual_inversion import Outputs, Search, SearchSpace, Tokens, invert
from erasediff_lora.objectives import Batch
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.concept_turns import losses_by_concept
from erasediff_lora.training.distributed import Processes
from erasediff_lora.training.hooks import Hook
from erasediff_lora.training.turns import Turns

log = logging.getLogger(__name__)
CAPTIONS = 256
"""Captions that tell the spread of what the text encoder hands out."""


@dataclass
class Place:
    """Where conditions are searched for, and those that were found there.

    Attributes:
        space: What they mean.
        captions: Of each forget picture, as the space takes them.
        pictures: Of each concept, with those captions.
        pools: Concept -> what was found, (P, V, E), the newest last.
    """

    space: SearchSpace
    captions: list[str]
    pictures: dict[str, CaptionedPictures]
    pools: dict[str, Tensor] = field(default_factory=dict)


class AdversarialSet(Hook):
    """The conditions of every concept, and their part in the forget batch.

    Args:
        recipe: Its `adversary`, and the concepts.
        denoiser: The network in training, with its encoders if it is their tokens that are searched among.
        forget: D_f.
        processes: Those that share the searches, and go on with the same conditions.
        micro_batches: The searches see no more pictures at once than a step does.
    """

    name = "adversary"

    def __init__(
        self,
        recipe: Recipe,
        denoiser: Denoiser,
        forget: EncodedSet,
        processes: Processes | None = None,
        micro_batches: MicroBatches | None = None,
    ) -> None:
        self.settings, self.seed = recipe.adversary, recipe.training.seed
        self.denoiser, self.processes = denoiser, processes or Processes()
        self.micro_batches = micro_batches or MicroBatches.of(recipe.training, self.processes.world)
        self.alone = self.processes.world == 1 or recipe.training.shard  # all predict with split weights, or none does
        self.forget, self.rows = forget, {prompt: row for row, prompt in enumerate(forget.prompts)}
        self.concepts = [concept.name for concept in recipe.forget.concepts]
        self.shown = [""] * len(forget.captions)
        """The concept of each picture."""
        own = {name: forget.rows_of(name) for name in self.concepts}
        for name, rows in own.items():
            for row in rows:
                self.shown[row] = name
        selected = {name: (rows, forget.select(torch.tensor(rows))) for name, rows in own.items()}
        self.places = {name: self._place(name, selected) for name in recipe.adversary.places(recipe.model)}
        """By the spaces' names."""
        self.turns = Turns(self.concepts)
        self.latest: dict[str, str] = {}
        """Concept -> where it was searched for last."""
        self.loss: float | None = None
        """Denoising loss that the last search came down to: it rises as the concept gets harder to bring back."""

    def before_step(self, step: int) -> None:
        """Search for conditions of the concepts whose turn it is, if it is time; the oldest of a pool gives way.

        A search that goes on from one of the pool replaces that one, and counts as new.
        """
        number, rest = divmod(step, self.settings.refresh_every)
        if rest:
            return
        seed = self.seed * 1_000_003 + number
        due: dict[str, list[str]] = {name: [] for name in self.places}
        for concept in self.turns.next(self.settings.searches):
            self.latest[concept] = self._next_place(concept)
            due[self.latest[concept]].append(concept)
        for name, concepts in due.items():
            self._refresh(self.places[name], concepts, number, seed, step)

    def after_step(self, done: int, metrics: Mapping[str, float | None]) -> None:
        """Take note of which concepts come back, conditions of theirs being among what was trained."""
        self.turns.measured(losses_by_concept(metrics, self.turns.names))

    def change_forget(self, batches: list[Batch]) -> list[Batch]:
        """The forget batch, a share of it under adversarial conditions in the place of the concept's name."""
        return [self._mix(batch) for batch in batches]

    def metrics(self) -> dict[str, float | None]:
        """The loss that the last search came down to."""
        return {"adversary_loss": self.loss}

    def state(self) -> dict[str, Any]:
        """The conditions, on the CPU, whose turn it is and where, and what the log says."""
        pools = {
            name: {concept: pool.cpu() for concept, pool in place.pools.items()} for name, place in self.places.items()
        }
        return {"pools": pools, "turns": self.turns.state(), "latest": self.latest, "loss": self.loss}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put what `state` returned back."""
        for name, pools in state["pools"].items():
            self.places[name].pools = {concept: pool.to(self.denoiser.device) for concept, pool in pools.items()}
        self.turns.load_state(state["turns"])
        self.latest = dict(state["latest"])
        self.loss = state.get("loss")

    def _place(self, name: str, selected: Mapping[str, tuple[list[int], EncodedSet]]) -> Place:
        texts = [self.forget.prompts[row] for row in self.forget.captions.tolist()]
        if name == "tokens":
            captions = [substitute(text, concept, SLOT) for text, concept in zip(texts, self.shown, strict=True)]
            space: SearchSpace = Tokens(self.denoiser)
        else:
            captions = texts
            space = Outputs(self._encoded, self._encoded(list(dict.fromkeys(texts))[:CAPTIONS]))
        pictures = {
            concept: CaptionedPictures(own.latents, own.shapes, [captions[row] for row in rows])
            for concept, (rows, own) in selected.items()
        }
        return Place(space, captions, pictures)

    def _encoded(self, captions: Sequence[str]) -> Condition:
        """What the network is told of captions of the forget set, encoded when that was made."""
        told = self.forget.embeddings[[self.rows[caption] for caption in captions]]
        return told.to(self.denoiser.device).to(self.denoiser.dtype)

    def _next_place(self, concept: str) -> str:
        """The places take turns, of each concept by itself."""
        names = list(self.places)
        return names[(names.index(self.latest[concept]) + 1) % len(names) if concept in self.latest else 0]

    def _refresh(self, place: Place, concepts: Sequence[str], number: int, seed: int, step: int) -> None:
        """One more condition of each of the concepts; the oldest of a pool gives way."""
        pools: dict[str, list[Tensor]] = {}
        starts: dict[str, Tensor] = {}
        for concept in concepts:
            pools[concept] = list(place.pools.get(concept, ()))
            known = self._known(len(pools[concept]), seed)
            starts[concept] = self._start(place, number, seed) if known is None else pools[concept].pop(known)
        for concept, found in self._shared(place, starts, seed).items():
            if not bool(torch.isfinite(found).all()):
                log.warning("the search for a condition of %s at step %d is not finite and left out", concept, step + 1)
                continue
            place.pools[concept] = torch.stack([*pools[concept], found])[-self.settings.pool :]

    def _known(self, count: int, seed: int) -> int | None:
        """Which one of the pool a search goes on from; None: it starts anew."""
        generator = torch.Generator().manual_seed(seed)
        if not count or float(torch.rand(1, generator=generator)) >= self.settings.continued:
            return None
        return int(torch.randint(count, (1,), generator=generator))

    def _start(self, place: Place, number: int, seed: int) -> Tensor:
        return place.space.start([], self.settings.vectors, number, seed)

    def _shared(self, place: Place, starts: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """What the searches find: of several, each process makes its part, if it can; a single one is made by all."""
        rank, world, mean = self.processes.rank, self.processes.world, self.processes.mean
        if len(starts) == 1 or self.alone:
            return {name: mean(found) for name, found in self._search(place, starts, seed).items()}
        own = {name: start for turn, (name, start) in enumerate(starts.items()) if turn % world == rank}
        found = self._search(place, own, seed)
        return {name: mean(found.get(name, torch.zeros_like(start))) * world for name, start in starts.items()}

    def _search(self, place: Place, starts: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Side by side: what each finds does not depend on the others."""
        settings = self.settings

        def search() -> list[tuple[Tensor, list[float]]]:
            return invert(
                self.denoiser,
                place.space,
                [
                    Search(place.pictures[name].noised(self.denoiser, settings.batch_size, seed), start)
                    for name, start in starts.items()
                ],
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                at_once=self.micro_batches.at_once,
            )

        if not starts:
            return {}
        found = dict(zip(starts, self.micro_batches.fit(search), strict=True))
        for _, losses in found.values():
            last = losses[-max(1, len(losses) // 4) :]
            self.loss = sum(last) / len(last)
        return {name: vectors for name, (vectors, _) in found.items()}

    def _mix(self, batch: Batch) -> Batch:
        assert batch.rows is not None and batch.condition_draw is not None
        chosen: dict[str, list[tuple[int, str, Tensor]]] = {name: [] for name in self.places}
        for at, (row, drawn) in enumerate(zip(batch.rows.tolist(), batch.condition_draw.tolist(), strict=True)):
            known = [
                (name, place.captions[row], condition)
                for name, place in self.places.items()
                for condition in place.pools.get(self.shown[row], ())
            ]
            if drawn < self.settings.share and known:
                name, caption, condition = known[int(drawn / self.settings.share * len(known))]
                chosen[name].append((at, caption, condition))
        prompts = batch.prompts
        for name, found in chosen.items():
            if found:
                rows, captions, conditions = zip(*found, strict=True)
                with torch.no_grad():
                    told = self.places[name].space.told(captions, torch.stack(conditions))
                prompts = prompts.replaced(torch.tensor(rows, device=batch.noisy.device), told)
        return batch if prompts is batch.prompts else replace(batch, prompts=prompts)
