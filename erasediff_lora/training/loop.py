"""The training program: set up, loop, save."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from erasediff_lora import __version__
from erasediff_lora.adapter.checkpoint import fingerprint_of
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.data.batches import use_base_targets
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Interrupted
from erasediff_lora.evaluation.pictures import generate_prompts, prompt_sheet
from erasediff_lora.objectives import Direction
from erasediff_lora.objectives.base import unflatten
from erasediff_lora.recipe import Recipe
from erasediff_lora.training import distributed
from erasediff_lora.training.checkpoints import save_checkpoint
from erasediff_lora.training.nonfinite import MOST_SKIPPED, find_nonfinite_sample, is_finite, not_finite
from erasediff_lora.training.selection import Selection
from erasediff_lora.training.setup import Run, set_up
from erasediff_lora.training.stop_signal import StopSignal

log = logging.getLogger(__name__)


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train an erasure adapter and write it to `recipe.output`.

    Args:
        recipe: What to erase, from what, how.
        resume: Go on from the newest whole checkpoint in the output folder, or from the start if there is none.
        overwrite: Replace a run in the output folder.

    Returns:
        The output folder.

    Raises:
        UserError: If something in the recipe cannot be used, or a loss is not finite.
        Interrupted: On SIGINT or SIGTERM, after saving a checkpoint.
    """
    accelerator = distributed.start(recipe)
    folder = recipe.output
    with (
        distributed.explain_lost_peer(accelerator, folder),
        distributed.lock_output_on_main(accelerator, folder, resume=resume, overwrite=overwrite),
    ):
        run = set_up(recipe, accelerator, resume=resume)
        with StopSignal() as stop:
            erase(run, stop)
        save(run)
    return folder


def erase(run: Run, stop: StopSignal) -> None:
    """The loop: step, report, and save what a stop or a crash must not cost."""
    training = run.recipe.training
    bar = tqdm(
        range(run.start, training.steps),
        initial=run.start,
        total=training.steps,
        desc="erase",
        disable=not run.accelerator.is_main_process,
    )
    for step in bar:
        began = time.perf_counter()
        direction = take_step(run, step)
        _report(run, bar, step + 1, direction, time.perf_counter() - began)
        done = step + 1
        run.average.consider(done, run.trainable)
        if (signum := distributed.agreed(run.accelerator, stop)) is not None:
            _checkpoint(run, done)
            raise Interrupted(signum, run.recipe.output, done)
        if done % training.checkpoint_every == 0 and done < training.steps:
            _checkpoint(run, done)
        if training.sample_every and done % training.sample_every == 0:
            _sample(run, done)
        if training.evaluate_every and done % training.evaluate_every == 0:
            _evaluate(run, done)


def take_step(run: Run, step: int) -> Direction:
    """Draw the batches of both sets, find the direction, step along it."""
    torch.manual_seed(run.recipe.training.seed * 1_000_003 + step)  # LoRA dropout, the same after a resume
    drift_weights = None
    if run.drift_sampler is not None:
        run.drift_sampler.measure(step)
        drift_weights = run.drift_sampler.drift_weights()
    forget, retain = run.sampler.draw(step, drift_weights)
    retain = [use_base_targets(batch, run.objective.network.predict_base) for batch in retain]
    if run.adversary is not None:
        run.adversary.refresh(step)
        forget = run.adversary.mixed(forget)
    direction = run.objective.direction(forget, retain)
    if is_finite(direction):
        run.skipped = 0
        parameters = run.trainable.parameters
        for parameter, gradient in zip(parameters, unflatten(direction.vector, parameters), strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, run.recipe.training.max_grad_norm)
        run.optimizer.step()
    else:
        # Split weights are put together by all processes at once, so none can look by itself.
        split = run.recipe.training.shard and run.accelerator.num_processes > 1
        cause = "a sample that only a run without training.shard can name"
        _leave_out(run, step, direction, cause if split else find_nonfinite_sample(run.objective, forget, retain))
    run.schedule.step()
    return direction


def save(run: Run) -> None:
    """Write the best or mean adapter in every format, and the last checkpoint."""
    _checkpoint(run, run.recipe.training.steps)
    if run.accelerator.is_main_process:
        best = _selection(run).best() if run.recipe.training.evaluate_every else run.average.mean(run.trainable)
        if best is not None:
            run.trainable.load_state(best)
        run.trainable.save(run.recipe.output, provenance(run.recipe, run.denoiser))
    if run.log is not None:
        run.log.close()
    run.accelerator.end_training()


def provenance(recipe: Recipe, denoiser: Denoiser) -> Provenance:
    """What the adapter's header says about this run."""
    return Provenance(
        base_model=recipe.model.public_name,
        base_fingerprint=fingerprint_of(denoiser.source),
        architecture=denoiser.architecture,
        prediction_type=denoiser.noise_scheduler.config.prediction_type,
        resolution=recipe.sampling.resolution or denoiser.resolution,
        concepts=tuple(concept.name for concept in recipe.forget.concepts),
        objective=recipe.objective.name,
        recipe_sha256=recipe.sha256(),
        version=__version__,
    )


def _leave_out(run: Run, step: int, direction: Direction, cause: str) -> None:
    """Keep NaN and Inf from the adapter: pass the step over, or end the run.

    Raises:
        UserError: If the recipe says stop, or steps before this one were passed over as well.
    """
    run.skipped += 1
    if run.recipe.training.non_finite == "skip" and run.skipped <= MOST_SKIPPED:
        log.warning("step %d is left out: %s is not finite", step + 1, cause)
        return
    kept = _checkpoint(run, step) if step > 0 else None
    raise not_finite(step + 1, direction, cause, kept, run.skipped)


def _report(run: Run, bar: Any, step: int, direction: Direction, seconds: float) -> None:
    values = direction.metrics | {
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "samples_per_second": 2 * run.recipe.training.batch_size / seconds,
        "peak_memory_bytes": _peak_memory(),
    }
    if run.adversary is not None:
        values["adversary_loss"] = run.adversary.loss
    values = {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
    if run.log is not None:
        run.log.write({"step": step} | values)
    run.accelerator.log({name: value for name, value in values.items() if value is not None}, step=step)
    shown = {"L_r": "retain_loss", "L_f": "forget_loss", "lambda": "lambda"}
    bar.set_postfix({label: f"{values[name]:.3f}" for label, name in shown.items() if values.get(name) is not None})


def _peak_memory() -> int:
    """Bytes: the most that the GPU allocator, or without a GPU this process, ever held."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _checkpoint(run: Run, step: int) -> Path | None:
    if not run.accelerator.is_main_process:
        return None
    trainer: dict[str, Any] = {
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "average": run.average.adapters,
    }
    if run.adversary is not None:
        trainer["adversary"] = run.adversary.state()
    if run.drift_sampler is not None:
        trainer["drift_sampler"] = run.drift_sampler.scores
    return save_checkpoint(
        run.recipe.output, step, run.trainable.state(), trainer, run.recipe.training.keep_checkpoints
    )


def _sample(run: Run, step: int) -> None:
    """Draw forget and retain prompts with the adapter as it is."""
    if run.accelerator.is_main_process:
        with _drawing(run):
            prompt_sheet(
                generate_prompts(run.denoiser, run.recipe), run.recipe.output / "samples" / f"step-{step:06d}.png"
            )


def _evaluate(run: Run, step: int) -> None:
    """Keep the adapter as it is, if it is the best so far."""
    if run.accelerator.is_main_process:
        with _drawing(run):
            _selection(run).consider(step, run.trainable.state())


def _selection(run: Run) -> Selection:
    return Selection(run.recipe, run.denoiser, run.trainable.disabled)


@contextmanager
def _drawing(run: Run) -> Iterator[None]:
    """The network at rest, with the encoders for the time being."""
    run.denoiser.network.eval()
    yield
    run.denoiser.release_encoders()
    run.denoiser.network.train()
