"""The training program: set up, loop, save. The step is the method's, in the order of the papers."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from erasediff_lora import __version__
from erasediff_lora.adapter.checkpoint import fingerprint_of
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Interrupted, Problem, UserError
from erasediff_lora.evaluation.means import check_means
from erasediff_lora.objectives import Batch, Direction, aim
from erasediff_lora.objectives.base import unflatten
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.run_folder import RECIPE_FILE
from erasediff_lora.training import distributed, trackers
from erasediff_lora.training.checkpoints import save_checkpoint
from erasediff_lora.training.closed_form_start import start_from_closed_form
from erasediff_lora.training.nonfinite import MOST_SKIPPED, find_nonfinite_sample, is_finite, not_finite
from erasediff_lora.training.progress import Progress
from erasediff_lora.training.setup import Run, adapt, find_near, load_base, set_up, trainer_state
from erasediff_lora.training.stop_signal import StopSignal

log = logging.getLogger(__name__)


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, micro_batches: int = 1) -> Path:
    """Train an erasure adapter and write it to `recipe.output`.

    Args:
        recipe: What to erase, from what, how.
        resume: Go on from the newest whole checkpoint in the output folder, or from the start if there is none.
        overwrite: Replace a run in the output folder.
        micro_batches: Of `training.gradient_accumulation: auto` the number that is tried first; see
            `memory.room.require_room`.

    Returns:
        The output folder.

    Raises:
        UserError: If something in the recipe cannot be used, what the evaluation or a tracker needs is not there, or
            a loss is not finite.
        Interrupted: On SIGINT or SIGTERM, after saving a checkpoint.
    """
    check_means(recipe)
    trackers.require_installed(recipe)
    accelerator = distributed.start(recipe)
    folder = recipe.output
    with (
        distributed.explain_lost_peer(accelerator, folder),
        distributed.lock_output_on_main(accelerator, folder, resume=resume, overwrite=overwrite),
    ):
        if recipe.steps == 0:
            save_start(recipe, accelerator)
            return folder
        trackers.begin(accelerator, recipe)
        run = set_up(recipe, accelerator, resume=resume, micro_batches=micro_batches)
        settle_micro_batches(run, accelerator)
        progress = Progress(run, accelerator)
        with StopSignal() as stop:
            done = erase(run, progress, stop)
        save(run, done)
        progress.close()
    return folder


def save_start(recipe: Recipe, accelerator: Accelerator) -> None:
    """Write the adapter as it starts: no pictures are drawn for it, and no steps taken.

    Raises:
        UserError: If the family has no closed form, or the adapter leaves out the layers that it changes.
    """
    denoiser = load_base(recipe, accelerator)
    recipe = find_near(recipe, denoiser, accelerator)
    trainable = adapt(recipe, denoiser)
    start_from_closed_form(recipe, denoiser, trainable)
    log.info(trainable.summary)
    if accelerator.is_main_process:
        write_text(recipe.output / RECIPE_FILE, recipe.to_yaml())
        trainable.save(recipe.output, provenance(recipe, denoiser))


def erase(run: Run, progress: Progress, stop: StopSignal) -> int:
    """The loop: step, report, and save what a stop or a crash must not cost; returns the steps that were taken."""
    training = run.recipe.training
    if run.start:
        run.hooks.make_up(run.start)
    if is_enough(run, progress):  # it ended before it was resumed
        return run.start
    for step in progress:
        began = time.perf_counter()
        direction = take_step(run, step)
        seconds = time.perf_counter() - began
        done = step + 1
        run.hooks.after_step(done, direction.metrics)
        progress.report(done, direction, seconds)
        signum = distributed.agreed(progress.accelerator, stop)
        if signum is not None or (done % training.checkpoint_every == 0 and done < run.recipe.steps):
            progress.sync()
            checkpoint(run, done)
        if signum is not None:
            raise Interrupted(signum, run.recipe.output, done)
        run.hooks.after_saving(done)
        progress.tell_trackers(done)
        if is_enough(run, progress):
            return done
    return run.recipe.steps


def settle_micro_batches(run: Run, accelerator: Accelerator) -> None:
    """Say how a batch is cut, if that was left open; several processes try it on a step that none of them takes.

    One process finds out in its first step. Of several none may run out of memory while others wait for it.

    Raises:
        UserError: If memory is too little even for one picture at once.
    """
    micro_batches, objective = run.micro_batches, run.objective
    if not micro_batches.may_grow:
        return
    if run.processes.world > 1:
        problems: tuple[Problem, ...] = ()
        if not objective.network.is_split:
            together = objective.network
            objective.network = replace(together, mean=lambda tensor: tensor)
            try:
                micro_batches.fit(lambda: find_direction(run, run.start))
            except UserError as error:
                problems = error.problems
            finally:
                objective.network = together
        distributed.raise_together(problems)
        micro_batches.count = distributed.most(accelerator, micro_batches.count)
        micro_batches.may_grow = False
    log.info(
        "training.gradient_accumulation: auto: a batch in %d part(s) of %d", micro_batches.count, micro_batches.at_once
    )


def is_enough(run: Run, progress: Progress) -> bool:
    """Whether a run without a number of steps may end here: all processes end together."""
    return run.recipe.training.steps == "auto" and distributed.all_have(
        progress.accelerator, run.hooks.is_enough() or None
    )


def take_step(run: Run, step: int) -> Direction:
    """Draw x_t, t and c of both sets, aim them, find the direction δ = ∇L_r + λ∇ĝ, step along it."""
    torch.manual_seed(run.recipe.training.seed * 1_000_003 + step)  # LoRA dropout, the same after a resume
    run.hooks.before_step(step)
    direction, forget, retain = run.micro_batches.fit(lambda: find_direction(run, step))
    if is_finite(direction):
        descend(run, direction)
    else:
        leave_out(run, step, direction, forget, retain)
    run.schedule.step()
    return direction


def find_direction(run: Run, step: int) -> tuple[Direction, list[Batch], list[Batch]]:
    """δ, and the micro-batches that it was found on; nothing is changed by it."""
    forget, retain = run.sampler.draw(step, run.hooks.retain_weights(), run.hooks.forget_concepts())
    forget = run.hooks.change_forget(forget)
    return run.objective.direction(*aim(run.objective, forget, retain)), forget, retain


def descend(run: Run, direction: Direction) -> None:
    """A step of the outer optimizer along δ, which is clipped as one vector."""
    run.skipped = 0
    parameters = run.trainable.parameters
    for parameter, gradient in zip(parameters, unflatten(direction.vector, parameters), strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, run.recipe.training.max_grad_norm)
    run.optimizer.step()


def leave_out(run: Run, step: int, direction: Direction, forget: list[Batch], retain: list[Batch]) -> None:
    """Keep NaN and Inf from the adapter: pass the step over, or end the run.

    Raises:
        UserError: If the recipe says stop, or steps before this one were passed over as well.
    """
    if run.objective.network.is_split:  # put together by all processes at once, so none can look by itself
        cause = "a sample that only a run without training.shard can name"
    else:
        cause = find_nonfinite_sample(run.objective, forget, retain)
    run.skipped += 1
    if run.recipe.training.non_finite == "skip" and run.skipped <= MOST_SKIPPED:
        log.warning("step %d is left out: %s is not finite", step + 1, cause)
        return
    kept = checkpoint(run, step) if step > 0 else None
    raise not_finite(step + 1, direction, cause, kept, run.skipped, run.denoiser.dtype)


def checkpoint(run: Run, done: int) -> Path | None:
    """Save what the run can go on from, in the main process.

    Raises:
        UserError: If the disk is full.
    """
    if not run.processes.is_main:
        return None
    recipe = run.recipe
    return save_checkpoint(
        recipe.output, done, run.trainable.state(), trainer_state(run), recipe.training.keep_checkpoints
    )


def save(run: Run, done: int) -> None:
    """Write the last checkpoint, and the adapter in every format: the last step's, or what a hook has in its place."""
    checkpoint(run, done)
    if run.processes.is_main:
        chosen = run.hooks.adapter()
        if chosen is not None:
            run.trainable.load_state(chosen)
        run.trainable.save(run.recipe.output, provenance(run.recipe, run.denoiser))


def provenance(recipe: Recipe, denoiser: Denoiser) -> Provenance:
    """What the adapter's header says about this run."""
    return Provenance(
        base_model=recipe.model.public_name,
        base_fingerprint=fingerprint_of(denoiser.weights),
        architecture=denoiser.architecture,
        prediction_type=denoiser.noise_scheduler.config.prediction_type,
        resolution=recipe.sampling.resolution or denoiser.resolution,
        concepts=tuple(concept.name for concept in recipe.forget.concepts),
        objective=recipe.objective.name,
        recipe_sha256=recipe.sha256(),
        version=__version__,
    )
