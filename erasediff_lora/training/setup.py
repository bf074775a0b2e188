"""A run: all that the training loop needs, put together from a recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from erasediff_lora import denoisers, objectives
from erasediff_lora.data import sets
from erasediff_lora.data.batches import BatchSampler
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.objectives import Network, Objective
from erasediff_lora.objectives.loss_scaling import loss_scale
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.run_folder import LOG_FILE, RECIPE_FILE, SET_SHEETS, JsonLog
from erasediff_lora.training import parameters
from erasediff_lora.training.adversarial_conditions import AdversarialSet
from erasediff_lora.training.checkpoints import check_same_run, newest_checkpoint
from erasediff_lora.training.drift_sampling import DriftSampler
from erasediff_lora.training.fsdp import shard
from erasediff_lora.training.optimizers import create_optimizer, create_schedule
from erasediff_lora.training.parameters import Trainable
from erasediff_lora.training.precompute import Preparation, prepared
from erasediff_lora.training.weight_averaging import Average

log = logging.getLogger(__name__)
PREPARATION = 1_000_000


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
    average: Average
    adversary: AdversarialSet | None = None
    drift_sampler: DriftSampler | None = None
    skipped: int = 0
    """Steps that were left out in a row."""


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
    drift_sampler = None
    if recipe.retain.focus:
        predict_base = objective.network.predict_base
        drift_sampler = DriftSampler(recipe.retain, denoiser, retain, predict_base, mean, recipe.training.seed)
    sampler = BatchSampler.of(
        recipe, forget, retain, denoiser, rank=accelerator.process_index, world=accelerator.num_processes
    )
    # On the fresh adapter, on D_f and D_r as they are, and on steps far from the loop's: a resumed run prepares alike.
    plain = replace(sampler, contrast=0.0, high_noise=0.0)
    preparation = prepared(
        recipe,
        denoiser.fingerprint,
        accelerator,
        lambda: objective.prepare(lambda step: plain.draw(PREPARATION + step)),
    )
    objective.prepared = [tensor.to(denoiser.device) for tensor in preparation.tensors]
    start = saved[1]["step"] if saved else 0
    run = Run(
        recipe,
        accelerator,
        denoiser,
        trainable,
        sampler,
        objective,
        optimizer,
        schedule,
        JsonLog(recipe.output / LOG_FILE, start) if accelerator.is_main_process else None,
        start,
        preparation,
        Average(recipe.training),
        adversary,
        drift_sampler,
    )
    if saved is not None:
        _restore(run, *saved)
    for note in objective.notes:
        log.info(note)
    log.info(trainable.summary)
    if accelerator.num_processes > 1:
        log.info("%d processes share every batch", accelerator.num_processes)
    if accelerator.is_main_process:
        write_text(recipe.output / RECIPE_FILE, recipe.to_yaml())
    accelerator.init_trackers("erasediff-lora", config={"recipe": recipe.to_yaml()})
    return run


def adapt(recipe: Recipe, denoiser: Denoiser) -> Trainable:
    """Give the frozen network what is trained, and make it ready for training."""
    trainable = parameters.create(recipe.adapter, denoiser, recipe.training.seed)
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


def _restore(run: Run, weights: dict[str, Tensor], trainer: dict[str, Any]) -> None:
    """Go on from a checkpoint."""
    run.trainable.load_state(weights)
    run.optimizer.load_state_dict(trainer["optimizer"])
    run.schedule.load_state_dict(trainer["schedule"])
    run.average.load_state(trainer["average"])
    run.average.consider(run.start, run.trainable)
    if run.adversary is not None:
        run.adversary.load_state(trainer["adversary"])
    if run.drift_sampler is not None:
        run.drift_sampler.scores = trainer["drift_sampler"]
