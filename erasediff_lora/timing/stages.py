"""What each stage of a run has the network do, from the recipe and one hollow step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from erasediff_lora import denoisers
from erasediff_lora.data.images import count_pictures
from erasediff_lora.data.prompt_files import file_prompts
from erasediff_lora.denoisers import Denoiser, loading
from erasediff_lora.evaluation.attacks import attack
from erasediff_lora.evaluation.evidence import BASE_FORGET_SAMPLES
from erasediff_lora.evaluation.metrics import metric
from erasediff_lora.evaluation.metrics.strength_sweep import SweepSettings
from erasediff_lora.evaluation.parts import Work
from erasediff_lora.memory.hollow_run import Repeated, hollow_run
from erasediff_lora.memory.plan import cut_into
from erasediff_lora.memory.tracker import on_meta
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import ATTACKS
from erasediff_lora.training import loop

SHEET = 24
"""Pictures of a sheet of samples."""


@dataclass
class Passes:
    """Pictures that went through the network.

    Attributes:
        looked: Without gradients.
        trained: Forward and backward.
    """

    looked: float = 0
    trained: float = 0


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: What is done.
        detail: How much of it.
        looked: Pictures that go through the network without gradients.
        trained: Pictures that go through it forward and backward.
        encoded: Pictures that go through the autoencoder.
    """

    name: str
    detail: str
    looked: float = 0
    trained: float = 0
    encoded: float = 0


@dataclass(frozen=True)
class Effort:
    """What a step and the preparation before the first one take, whatever the number of steps.

    Attributes:
        denoiser: The base, without weights.
        prepare: Before the first step.
        step: Each.
    """

    denoiser: Denoiser
    prepare: Passes = field(default_factory=Passes)
    step: Passes = field(default_factory=Passes)


def effort(recipe: Recipe) -> Effort:
    """Count the passes of the very step of the training program, on tensors that have shapes only.

    Raises:
        UserError: If the base does not say what its networks are, or the targets match nothing.
    """
    recipe = cut_into(recipe.model_copy(update={"model": loading.described(recipe.model)}), 1)
    repeats = [int(getattr(recipe.objective, name)) for name in recipe.objective.repeats]
    once = recipe.objective.model_copy(update=dict.fromkeys(recipe.objective.repeats, 1))
    recipe = recipe.model_copy(update={"objective": once})
    denoiser = denoisers.load(recipe.model)
    found = Effort(denoiser)
    if recipe.steps == 0:
        return found
    denoiser.device = torch.device("meta")
    with on_meta():
        denoiser.without_weights()
    sampler = Repeated.of(recipe, denoiser)
    with on_meta():
        sampler = sampler.to(denoiser.device)
        run = hollow_run(recipe, denoiser, sampler)
        with counted(denoiser.network, found.prepare):
            run.objective.prepared = run.objective.prepare(sampler.plain.draw)
        with counted(denoiser.network, found.step):
            loop.take_step(run, 0)
    for count in repeats:
        found.prepare.looked *= count
        found.prepare.trained *= count
    return found


@contextmanager
def counted(network: nn.Module, passes: Passes) -> Iterator[None]:
    """Count what goes through a network inside."""

    def count(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        rows = len(next(iter([*arguments, *options.values()])))
        if torch.is_grad_enabled():
            passes.trained += rows
        else:
            passes.looked += rows

    handle = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def stages(recipe: Recipe, found: Effort, *, read: bool = True) -> list[Stage]:
    """The stages of a run, in order, those left out that it has not.

    Args:
        recipe: The run.
        found: What a step takes.
        read: Whether to count the pictures that are read, which takes a look at their folders.

    Raises:
        UserError: For sets or files of prompts that are not readable.
    """
    once = recipe.sampling.steps * found.denoiser.rows_drawn(recipe.sampling.guidance)
    made = [*_sets(recipe, once, read=read), *_training(recipe, found, once), _evaluation(recipe, found.denoiser)]
    return [stage for stage in made if stage.looked or stage.trained or stage.encoded]


def _sets(recipe: Recipe, once: int, *, read: bool) -> Iterator[Stage]:
    if recipe.steps == 0:
        return
    forget, retain = recipe.forget, recipe.retain
    drawn = sum(data.count for data in (forget, retain) if data.images is None)
    if recipe.objective.counterparts:
        drawn += recipe.forget.count
    yield Stage("draw the sets", f"{drawn:,} pictures, those in the cache included", looked=drawn * once)
    if read:
        count = count_pictures("forget", forget) + count_pictures("retain", retain)
        yield Stage("encode the sets", f"{count:,} pictures", encoded=count)


def _training(recipe: Recipe, found: Effort, once: int) -> Iterator[Stage]:
    steps, training, adversary, retain = recipe.steps, recipe.training, recipe.adversary, recipe.retain
    yield Stage("prepare", "what the objective computes once", found.prepare.looked, found.prepare.trained)
    if adversary.pool and steps:
        each = min(adversary.searches, len(recipe.forget.concepts))
        count = math.ceil(steps / adversary.refresh_every) * each
        rows = count * adversary.steps * adversary.batch_size
        yield Stage("search for conditions", f"{count:,} searches", trained=rows)
    if retain.focus and steps:
        count = (steps - 1) // retain.focus_every
        yield Stage("measure what is near", f"{count:,} times", looked=count * retain.focus_samples * 2)
    at_most = "at most " if training.steps == "auto" else ""
    yield Stage("steps", f"{at_most}{steps:,}", steps * found.step.looked, steps * found.step.trained)
    if training.sample_every:
        count = steps // training.sample_every
        yield Stage("sample sheets", f"{count:,}", looked=count * SHEET * once)
    if training.evaluate_every:
        count = steps // training.evaluate_every
        samples = 2 * recipe.evaluation.settings(SweepSettings).samples
        yield Stage("choose the best", f"{count:,} times {samples} pictures", looked=count * samples * once)


def _evaluation(recipe: Recipe, denoiser: Denoiser) -> Stage:
    """With the adapter and without, what metrics and attacks add, and the base of the others' pictures."""
    options, concepts = recipe.evaluation, len(recipe.forget.concepts)
    given = file_prompts(recipe)
    forget = len(given.forget) or options.shared(options.forget_samples, concepts)
    retain = len(given.retain) or options.retain_samples
    needed = [part(name).base_pictures(options) for name, part in ATTACKS.items()]
    total = Work(drawn=forget + min(forget, max(BASE_FORGET_SAMPLES, *needed)) + 2 * retain)
    for name in options.metrics:
        total += metric(name).work(options, concepts)
    models = 3 if options.never_learned else 2
    for name in options.attacks:
        total += attack(name).work(options, concepts).times(models)
    total += Work(drawn=len(given.attack)).times(models)
    steps = options.steps or recipe.sampling.steps
    guidance = recipe.sampling.guidance if options.guidance is None else options.guidance
    drawn = total.drawn * steps * denoiser.rows_drawn(guidance)
    detail = f"{round(total.drawn):,} pictures" + (", searches" if total.trained else "")
    return Stage("evaluate", detail, drawn + total.looked, total.trained)


def work(recipe: Recipe) -> dict[str, float]:
    """The work of a run's three parts, for bars: as `stages`, without the look at the very step that takes a while."""
    size = recipe.training.batch_size
    denoiser = denoisers.load(recipe.model)
    found = Effort(denoiser, step=Passes(looked=size, trained=2 * size))
    parts = {"sets": 0.0, "steps": 0.0, "evaluate": 0.0}
    for stage in stages(recipe, found, read=False):
        part = {"draw the sets": "sets", "evaluate": "evaluate"}.get(stage.name, "steps")
        parts[part] += stage.looked + 3 * stage.trained + stage.encoded
    return parts
