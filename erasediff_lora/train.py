"""The training program: set up, loop, save."""

from __future__ import annotations

import logging
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from erasediff_lora import __version__, denoisers, objectives, processes, trainables
from erasediff_lora.adapter.checkpoint import fingerprint_of
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adversary import AdversarialSet
from erasediff_lora.data import sets
from erasediff_lora.data.batches import BatchSampler, held_to_base
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.diagnosis import MOST_SKIPPED, culprit, is_finite, not_finite
from erasediff_lora.disturbance import Disturbance
from erasediff_lora.evaluation.pictures import draw_prompts, prompt_sheet
from erasediff_lora.evaluation.selection import Selection
from erasediff_lora.files import write_text
from erasediff_lora.half_precision import loss_scale
from erasediff_lora.objectives import Direction, Network, Objective
from erasediff_lora.objectives.base import unflatten
from erasediff_lora.optimizers import create_optimizer, create_schedule
from erasediff_lora.preparation import Preparation, prepared
from erasediff_lora.recipe import Recipe
from erasediff_lora.run_folder import (
    LOG_FILE,
    RECIPE_FILE,
    SET_SHEETS,
    JsonLog,
    check_same_run,
    newest_checkpoint,
    save_checkpoint,
)
from erasediff_lora.sharding import shard
from erasediff_lora.stop_signal import StopSignal
from erasediff_lora.trainables import Trainable

log = logging.getLogger(__name__)
PREPARATION = 1_000_000


class Interrupted(Exception):
    """SIGINT or SIGTERM: a checkpoint has been saved."""

    def __init__(self, signum: int, folder: Path, step: int) -> None:
        self.signum = signum
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; a checkpoint is saved. "
            f"Run the same command with --resume to go on (output: {folder})."
        )


@dataclass
class Run:
    """All that the loop needs."""

    recipe: Recipe
    accelerator: Accelerator
    denoiser: Denoiser
    trainable: Trainable
    sampler: BatchSampler
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    log: JsonLog | None
    start: int
    preparation: Preparation
    adversary: AdversarialSet | None = None
    disturbance: Disturbance | None = None
    skipped: int = 0
    """Steps that were left out in a row."""


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
    accelerator = processes.start(recipe)
    folder = recipe.output
    with (
        processes.company(accelerator, folder),
        processes.main_claims(accelerator, folder, resume=resume, overwrite=overwrite),
    ):
        run = set_up(recipe, accelerator, resume=resume)
        with StopSignal() as stop:
            erase(run, stop)
        save(run)
    return folder


def set_up(recipe: Recipe, accelerator: Accelerator, *, resume: bool) -> Run:
    """Load the base, encode the sets, add the adapter, restore the checkpoint."""
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    saved = None
    if resume:
        check_same_run(recipe)
        saved = newest_checkpoint(recipe.output)
        if saved is None:
            log.info("no checkpoint in %s yet: starting from the beginning", recipe.output)
    denoiser = denoisers.load(recipe.model)
    if recipe.model.device == "auto":
        denoiser.device = accelerator.device
    with accelerator.main_process_first():
        forget = sets.prepare(recipe, denoiser, "forget", sheet=recipe.output / SET_SHEETS["forget"])
        retain = sets.prepare(recipe, denoiser, "retain", sheet=recipe.output / SET_SHEETS["retain"])
    if not recipe.adversary.pool:
        denoiser.release_encoders()

    trainable = _adapt_here(recipe, denoiser, accelerator.num_processes)
    optimizer = create_optimizer(recipe.training, trainable.parameters)
    schedule = create_schedule(recipe.training, optimizer)

    def mean(tensor: Tensor) -> Tensor:
        return accelerator.reduce(tensor, reduction="mean")

    objective = create_objective(recipe, denoiser, trainable, mean)
    adversary = AdversarialSet(recipe, denoiser, forget, mean) if recipe.adversary.pool else None
    disturbance = None
    if recipe.retain.focus:
        predict_base = objective.network.predict_base
        disturbance = Disturbance(recipe.retain, denoiser, retain, predict_base, mean, recipe.training.seed)
    sampler = BatchSampler.of(
        recipe, forget, retain, denoiser, rank=accelerator.process_index, world=accelerator.num_processes
    )
    # On the fresh adapter, on D_f and D_r as they are, and on steps far from the loop's: a resumed run prepares alike.
    plain = replace(sampler, contrast=0.0)
    preparation = prepared(
        recipe,
        denoiser.fingerprint,
        accelerator,
        lambda: objective.prepare(lambda step: plain.draw(PREPARATION + step)),
    )
    objective.prepared = [tensor.to(denoiser.device) for tensor in preparation.tensors]
    start = 0
    if saved is not None:
        weights, trainer = saved
        trainable.load_state(weights)
        optimizer.load_state_dict(trainer["optimizer"])
        schedule.load_state_dict(trainer["schedule"])
        start = trainer["step"]
        if adversary is not None:
            adversary.load_state(trainer["adversary"])
        if disturbance is not None:
            disturbance.scores = trainer["disturbance"]
    for note in objective.notes:
        log.info(note)
    log.info(trainable.summary)
    if accelerator.num_processes > 1:
        log.info("%d processes share every batch", accelerator.num_processes)
    if accelerator.is_main_process:
        write_text(recipe.output / RECIPE_FILE, recipe.to_yaml())
    json_log = JsonLog(recipe.output / LOG_FILE, start) if accelerator.is_main_process else None
    accelerator.init_trackers("erasediff-lora", config={"recipe": recipe.to_yaml()})
    return Run(
        recipe,
        accelerator,
        denoiser,
        trainable,
        sampler,
        objective,
        optimizer,
        schedule,
        json_log,
        start,
        preparation,
        adversary,
        disturbance,
    )


def adapt(recipe: Recipe, denoiser: Denoiser) -> Trainable:
    """Give the frozen network what is trained, and make it ready for training."""
    trainable = trainables.create(recipe.adapter, denoiser, recipe.training.seed)
    network = denoiser.network
    network.train()  # for gradient checkpointing and LoRA dropout; diffusion UNets have no dropout of their own
    if recipe.training.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return trainable


def _adapt_here(recipe: Recipe, denoiser: Denoiser, world: int) -> Trainable:
    """Adapt the network, and lay it out, compile and split it as the recipe says."""
    training, device = recipe.training, denoiser.device
    split = training.shard and world > 1
    if split:
        denoiser.device = torch.device("cpu")
    trainable = adapt(recipe, denoiser)
    network = denoiser.network
    if training.channels_last:
        network.to(memory_format=torch.channels_last)
    if training.compile:
        getattr(network, "compile_repeated_blocks" if network._repeated_blocks else "compile")()
    if split:
        shard(network, trainable.parameters, world, device)
        denoiser.device = device
    return trainable


def create_objective(
    recipe: Recipe, denoiser: Denoiser, trainable: Trainable, mean: Callable[[Tensor], Tensor]
) -> Objective:
    """The recipe's objective on the network; `mean` averages over processes."""

    def predict_base(noisy: Tensor, timesteps: Tensor, prompts: Tensor) -> Tensor:
        with trainable.disabled():
            return denoiser.predict(noisy, timesteps, prompts)

    return objectives.create(
        recipe.objective,
        Network(
            trainable.parameters,
            denoiser.predict,
            predict_base,
            mean=mean,
            loss_scale=loss_scale(denoiser.dtype),
            base_weights=trainable.base_weights,
            weight_changes=trainable.weight_changes,
            train_timesteps=denoiser.noise_scheduler.config.num_train_timesteps,
        ),
    )


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
        if (signum := processes.agreed(run.accelerator, stop)) is not None:
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
    odds = None
    if run.disturbance is not None:
        run.disturbance.measure(step)
        odds = run.disturbance.odds()
    forget, retain = run.sampler.draw(step, odds)
    retain = [held_to_base(batch, run.objective.network.predict_base) for batch in retain]
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
        _leave_out(run, step, direction, cause if split else culprit(run.objective, forget, retain))
    run.schedule.step()
    return direction


def save(run: Run) -> None:
    """Write the best adapter in every format, and the last checkpoint."""
    _checkpoint(run, run.recipe.training.steps)
    if run.accelerator.is_main_process:
        if run.recipe.training.evaluate_every and (best := _selection(run).best()) is not None:
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
    trainer: dict[str, Any] = {"optimizer": run.optimizer.state_dict(), "schedule": run.schedule.state_dict()}
    if run.adversary is not None:
        trainer["adversary"] = run.adversary.state()
    if run.disturbance is not None:
        trainer["disturbance"] = run.disturbance.scores
    return save_checkpoint(
        run.recipe.output, step, run.trainable.state(), trainer, run.recipe.training.keep_checkpoints
    )


def _sample(run: Run, step: int) -> None:
    """Draw forget and retain prompts with the adapter as it is."""
    if run.accelerator.is_main_process:
        with _drawing(run):
            prompt_sheet(draw_prompts(run.denoiser, run.recipe), run.recipe.output / "samples" / f"step-{step:06d}.png")


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
