"""The adversarial forget set: conditions that bring the concept back, found and trained against by turns.

An erased name is not an erased concept: concept inversion learns another word for it on the erased model. Here the
attack is part of the data. Every few steps it searches for such a word under the adapter as it is, and from then on a
share of the forget pictures is trained under the words that it has found.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
        texts = [forget.prompts[row] for row in forget.captions.tolist()]
        in_tokens = recipe.adversary.needs_encoders(recipe.model)
        self.space: SearchSpace = (
            Tokens(denoiser)
            if in_tokens
            else Outputs(self._encoded, self._encoded(list(dict.fromkeys(texts))[:CAPTIONS]))
        )
        names = [concept.name for concept in recipe.forget.concepts]
        self.pictures: dict[str, CaptionedPictures] = {}
        self.shown: list[tuple[str, str]] = [("", "")] * len(texts)
        """Concept and caption of each picture; where a word is searched for, with SLOT in the place of the name."""
        for name in names:
            chosen = forget.rows_of(name)
            captions = [substitute(texts[row], name, SLOT) if in_tokens else texts[row] for row in chosen]
            own = forget.select(torch.tensor(chosen))
            self.pictures[name] = CaptionedPictures(own.latents, own.shapes, captions)
            for row, caption in zip(chosen, captions, strict=True):
                self.shown[row] = name, caption
        self.turns = Turns(names)
        self.pools: dict[str, Tensor] = {}
        """Concept -> what was found, (P, V, E), the newest last."""
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
        pools: dict[str, list[Tensor]] = {}
        starts: dict[str, Tensor] = {}
        for name in self.turns.next(self.settings.searches):
            pools[name] = list(self.pools.get(name, ()))
            place = self._place(len(pools[name]), seed)
            starts[name] = self._start(number, seed) if place is None else pools[name].pop(place)
        for name, found in self._shared(starts, seed).items():
            if not bool(torch.isfinite(found).all()):
                log.warning("the search for a condition of %s at step %d is not finite and left out", name, step + 1)
                continue
            self.pools[name] = torch.stack([*pools[name], found])[-self.settings.pool :]

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
        """The conditions, on the CPU, whose turn it is, and what the log says."""
        pools = {name: pool.cpu() for name, pool in self.pools.items()}
        return {"pools": pools, "turns": self.turns.state(), "loss": self.loss}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put what `state` returned back."""
        self.pools = {name: pool.to(self.denoiser.device) for name, pool in state["pools"].items()}
        self.turns.load_state(state["turns"])
        self.loss = state.get("loss")

    def _encoded(self, captions: Sequence[str]) -> Condition:
        """What the network is told of captions of the forget set, encoded when that was made."""
        told = self.forget.embeddings[[self.rows[caption] for caption in captions]]
        return told.to(self.denoiser.device).to(self.denoiser.dtype)

    def _place(self, known: int, seed: int) -> int | None:
        """Where in the pool a search goes on; None: it starts anew."""
        generator = torch.Generator().manual_seed(seed)
        if not known or float(torch.rand(1, generator=generator)) >= self.settings.continued:
            return None
        return int(torch.randint(known, (1,), generator=generator))

    def _start(self, number: int, seed: int) -> Tensor:
        return self.space.start([], self.settings.vectors, number, seed)

    def _shared(self, starts: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """What the searches find: of several, each process makes its part, if it can; a single one is made by all."""
        rank, world, mean = self.processes.rank, self.processes.world, self.processes.mean
        if len(starts) == 1 or self.alone:
            return {name: mean(found) for name, found in self._search(starts, seed).items()}
        own = {name: start for turn, (name, start) in enumerate(starts.items()) if turn % world == rank}
        found = self._search(own, seed)
        return {name: mean(found.get(name, torch.zeros_like(start))) * world for name, start in starts.items()}

    def _search(self, starts: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """Side by side: what each finds does not depend on the others."""
        settings = self.settings

        def search() -> list[tuple[Tensor, list[float]]]:
            return invert(
                self.denoiser,
                self.space,
                [
                    Search(self.pictures[name].noised(self.denoiser, settings.batch_size, seed), start)
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
        places, captions, conditions = [], [], []
        for place, (row, drawn) in enumerate(zip(batch.rows.tolist(), batch.condition_draw.tolist(), strict=True)):
            name, caption = self.shown[row]
            if drawn < self.settings.share and name in self.pools:
                pool = self.pools[name]
                places.append(place)
                captions.append(caption)
                conditions.append(pool[int(drawn / self.settings.share * len(pool))])
        if not places:
            return batch
        with torch.no_grad():
            encoded = self.space.told(captions, torch.stack(conditions))
        rows = torch.tensor(places, device=batch.noisy.device)
        return replace(batch, prompts=batch.prompts.replaced(rows, encoded))
