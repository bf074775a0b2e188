"""What metrics and attacks are given: the models, the judge, and the pictures, drawn when they are asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from erasediff_lora.data.captioned import CaptionedPictures
from erasediff_lora.data.prompt_files import FilePrompts, file_prompts
from erasediff_lora.data.prompts import Prompt, fairly, shared_out
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation import features as feature_nets
from erasediff_lora.evaluation.candidates import Candidate, Candidates
from erasediff_lora.evaluation.features import Extract
from erasediff_lora.evaluation.judges import PictureJudge
from erasediff_lora.evaluation.judging import judge_of
from erasediff_lora.evaluation.pictures import Drawn, forget_prompts, retain_prompts
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.schema import Section
from erasediff_lora.registry import ATTACKS

log = logging.getLogger(__name__)
S = TypeVar("S", bound=Section)
BASE_FORGET_SAMPLES = 60
"""That the base draws the concept needs no more than a glance; the other counts are compared."""


@dataclass
class Evidence:
    """An evaluation's models and pictures.

    Attributes:
        recipe: The recipe.
        candidates: The models.
    """

    recipe: Recipe
    candidates: Candidates
    _drawn: dict[tuple[str, str], list[Drawn]] = field(default_factory=dict)
    _features: dict[str, Extract] = field(default_factory=dict)

    def settings(self, kind: type[S]) -> S:
        """The options of a metric or an attack: `evidence.settings(InversionSettings).steps`."""
        return self.recipe.evaluation.settings(kind)

    @cached_property
    def judge(self) -> PictureJudge | None:
        """The recipe's judge, if it names one."""
        return judge_of(self.recipe)

    def require_judge(self, what: str) -> PictureJudge:
        """The judge.

        Raises:
            UserError: If the recipe names none.
        """
        if self.judge is None:
            raise UserError(
                Problem("evaluation.judge", None, f"{what} needs a judge.", "Name one, such as clip:FOLDER or nudenet.")
            )
        return self.judge

    @property
    def concepts(self) -> set[str]:
        """All concepts of the recipe."""
        return {*self.forgotten, *self.recipe.retain.concepts}

    @property
    def forgotten(self) -> list[str]:
        """The forgotten ones."""
        return [concept.name for concept in self.recipe.forget.concepts]

    @cached_property
    def retain_set(self) -> CaptionedPictures:
        """D_r with its captions, as whoever fine-tunes on it has it.

        Looked up once, before a model is altered: where it is still to be drawn, the base does, with the erasure off.
        """
        from erasediff_lora.data import sets

        with self.candidates.base.active() as denoiser:
            encoded = sets.prepare(self.recipe, denoiser, "retain")
        texts = [encoded.prompts[row] for row in encoded.captions.tolist()]
        return CaptionedPictures(encoded.latents, encoded.shapes, texts)

    @cached_property
    def from_files(self) -> FilePrompts:
        """The prompts of the recipe's files."""
        return file_prompts(self.recipe)

    @cached_property
    def forget_prompts(self) -> list[Prompt]:
        """A prompt for each picture of the forget prompts, every concept among them; of files all that they hold."""
        every, options = self._every_prompt[0], self.recipe.evaluation
        if self.from_files.forget:
            return every
        count = options.shared(options.forget_samples, len(self.forgotten))
        if count > options.forget_samples:
            log.info("evaluation.forget_samples: %d, so that every concept has some", count)
        return every[:count]

    @cached_property
    def retain_prompts(self) -> list[Prompt]:
        """A prompt for each picture of the retain prompts; of as many concepts as there are pictures for."""
        every = self._every_prompt[1]
        return every if self.from_files.retain else every[: self.recipe.evaluation.retain_samples]

    @cached_property
    def _every_prompt(self) -> tuple[list[Prompt], list[Prompt]]:
        """Forget and retain prompts, those included that a quick look leaves out: seeds are counted over all."""
        options = self.recipe.evaluation
        forget, retain = options.first_of or (options.forget_samples, options.retain_samples)
        count = options.shared(forget, len(self.forgotten))
        return (
            list(self.from_files.forget) or shared_out(forget_prompts(self.recipe), count, options.seed),
            list(self.from_files.retain) or fairly(retain_prompts(self.recipe), retain, options.seed),
        )

    @property
    def forget_seed(self) -> int:
        """Of the first picture of the forget prompts."""
        return self.recipe.evaluation.seed

    @property
    def retain_seed(self) -> int:
        """Of the first picture of the retain prompts."""
        return self.forget_seed + len(self._every_prompt[0])

    @property
    def spare_seed(self) -> int:
        """From here on, seeds are free: for the reference set and the attacks."""
        return self.retain_seed + len(self._every_prompt[1])

    def forget(self, candidate: Candidate) -> list[Drawn]:
        """The candidate's pictures of the forget prompts; fewer for the base, yet enough for attacks to start from.

        For all attacks that there are, so that numbers do not depend on which are tried. Where the base rate is low, it
        is compared with the other, and takes as many.
        """
        prompts, options = self.forget_prompts, self.recipe.evaluation
        if candidate is self.candidates.base and options.base_rate == "usual":
            needed = [part(name).base_pictures(options) for name, part in ATTACKS.items()]
            prompts = prompts[: options.shared(max(BASE_FORGET_SAMPLES, *needed), len(self.forgotten))]
        return self._draw(candidate, "forget", prompts, self.forget_seed)

    def retain(self, candidate: Candidate) -> list[Drawn]:
        """The candidate's pictures of the retain prompts."""
        return self._draw(candidate, "retain", self.retain_prompts, self.retain_seed)

    def reference(self) -> list[Drawn]:
        """The base's pictures of the retain prompts from other seeds: what distances are measured from."""
        return self._draw(self.candidates.base, "reference", self.retain_prompts, self.spare_seed)

    def features(self, spec: str | None) -> tuple[str, Extract]:
        """Name and function of the features that pictures are compared in.

        Args:
            spec: As the recipe names them; None: the judge's own, or else the default.

        Raises:
            UserError: If they cannot be loaded.
        """
        chosen = feature_nets.chosen(spec, self.recipe.evaluation.judge)
        if chosen not in self._features:
            self._features[chosen] = feature_nets.load(chosen)
        return feature_nets.shown(chosen, self.recipe.evaluation.judge), self._features[chosen]

    def _draw(self, candidate: Candidate, kind: str, prompts: list[Prompt], seed: int) -> list[Drawn]:
        key = (candidate.name, kind)
        if key not in self._drawn:
            self._drawn[key] = candidate.generate(prompts, seed, kind)
        return self._drawn[key]
