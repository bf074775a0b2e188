"""The base and the adapters of a playground, and what is drawn with them; no page here."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.playground.embeddings import read_embedding
from erasediff_lora.playground.wish import Wish

if TYPE_CHECKING:
    from erasediff_lora.denoisers import Denoiser
    from erasediff_lora.evaluation.erasures import Erasure
    from erasediff_lora.evaluation.judges import PictureJudge
    from erasediff_lora.recipe import Recipe

log = logging.getLogger(__name__)
REMEMBERED = 64
"""Pictures that need not be drawn again: the base stays what it is while strengths are tried."""


@dataclass(frozen=True)
class Pair:
    """Pictures of the same prompt and seed."""

    base: Image.Image
    erased: Image.Image
    seconds: float


class Studio:
    """Draws pairs, one at a time, whoever asks; loads what it needs when it is first asked.

    Args:
        recipe: Names the base, the sampling and the judge.
        adapters: Runs' folders or adapter files.
    """

    def __init__(self, recipe: Recipe, adapters: Sequence[Path]) -> None:
        self.recipe = recipe
        self.adapters = tuple(adapters)
        self._lock = threading.RLock()
        self._drawn: OrderedDict[Any, Image.Image] = OrderedDict()

    def load(self) -> None:
        """Read the weights.

        Raises:
            UserError: If the base or an adapter cannot be used, or they do not fit each other.
        """
        with self._lock:
            _ = self._erasures

    def draw(self, wish: Wish) -> Pair:
        """A pair of pictures.

        Raises:
            UserError: If the wish is not sound, or nothing can be drawn with it.
        """
        wish.require_sound()
        if len(wish.strengths) != len(self.adapters):
            what = f"{len(wish.strengths)} given for {len(self.adapters)} adapters."
            raise UserError(Problem("strengths", list(wish.strengths), what, "Give one for each adapter."))
        with self._lock:
            began = time.perf_counter()
            nothing = replace(wish, strengths=(0.0,) * len(self.adapters))
            base, erased = self._picture(nothing), self._picture(wish)
            return Pair(base, erased, time.perf_counter() - began)

    def judge(self, images: Sequence[Image.Image]) -> list[list[str]]:
        """What the recipe's judge sees in pictures.

        Raises:
            UserError: If the recipe names no judge, or it cannot be loaded.
        """
        with self._lock:
            return [sorted(seen) for seen in self._judge.recognise(list(images))]

    def whole(self, prompt: str, seed: int) -> Wish:
        """A wish as the recipe would draw it: all steps, the first adapter alone, as it was trained."""
        return Wish(prompt, seed, self.recipe.sampling.steps, (1.0, *(0.0 for _ in self.adapters[1:])))

    def _picture(self, wish: Wish) -> Image.Image:
        key = (wish, None if wish.embedding is None else wish.embedding.stat().st_mtime_ns)
        if key in self._drawn:
            self._drawn.move_to_end(key)
            return self._drawn[key]
        denoiser, sampling = self._denoiser, self.recipe.sampling.model_copy(update={"steps": wish.steps})
        for erasure, strength in zip(self._erasures, wish.strengths, strict=True):
            erasure.set_strength(strength)
        prompts = [wish.prompt] if wish.embedding is None else self._encoded(wish.prompt, wish.embedding)
        (image,) = denoiser.generate(prompts, [wish.seed], sampling, output="pil")
        self._drawn[key] = image
        while len(self._drawn) > REMEMBERED:
            self._drawn.popitem(last=False)
        return image

    def _encoded(self, prompt: str, file: Path) -> Any:
        import torch

        from erasediff_lora.denoisers import SLOT

        vectors = read_embedding(file, int(self._denoiser.token_embeddings.shape[1]))
        if SLOT not in prompt:
            what = f"has no {SLOT}, where the embedding would stand."
            raise UserError(Problem("prompt", prompt, what, f"Write for example: a picture of {SLOT}."))
        with torch.no_grad():
            return self._denoiser.encode_slots([prompt], vectors.to(self._denoiser.device))

    @cached_property
    def _denoiser(self) -> Denoiser:
        from erasediff_lora import denoisers

        denoiser = denoisers.load(self.recipe.model)
        _ = denoiser.pipeline
        return denoiser

    @cached_property
    def _erasures(self) -> Sequence[Erasure]:
        import torch

        from erasediff_lora.playground.stack import stacked

        if self.recipe.training.threads:
            torch.set_num_threads(self.recipe.training.threads)
        return stacked(self._denoiser, self.adapters, self.recipe.model.family)

    @cached_property
    def _judge(self) -> PictureJudge:
        from erasediff_lora.evaluation.judging import judge_of

        judge = judge_of(self.recipe)
        if judge is None:
            raise UserError(Problem("evaluation.judge", None, "is not named by the run's recipe.", "Add one to it."))
        return judge
