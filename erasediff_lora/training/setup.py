"""A run: all that the training loop needs, put together from a recipe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from erasediff_lora import denoisers, objectives
from erasediff_lora.data import sets
from erasediff_lora.data.batches import BatchSampler, Sampler
from erasediff_lora.data.micro_batches import MicroBatches
from erasediff_lora.data.near import choose_near
from erasediff_lora.data.rows import KINDS
from erasediff_lora.data.set_report import write_data_report
from erasediff_lora.data.sets import EncodedSet
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError, brief
from erasediff_lora.evaluation.means import require_steps_of_base, warn_of_resolution
from erasediff_lora.objectives import Network, Objective
from erasediff_lora.objectives.base import assign
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.objectives.loss_scaling import loss_scale
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.run_folder import RECIPE_FILE, SET_SHEETS
from erasediff_lora.training import trainables
from erasediff_lora.training.adversarial_conditions import AdversarialSet
from erasediff_lora.training.checkpoints import Checkpoint, check_same_run, newest_checkpoint
from erasediff_lora.training.closed_form_start import reading_layers, start_from_closed_form
from erasediff_lora.training.concept_turns import ConceptTurns
from erasediff_lora.training.distributed import Processes, one_per_cache_first, require_same_step
from erasediff_lora.training.drift_sampling import DriftSampler
from erasediff_lora.training.fsdp import shard
from erasediff_lora.training.hooks import Hook, Hooks
from erasediff_lora.training.optimizers import create_optimizer, create_schedule, restart_schedule
from erasediff_lora.training.origin import (
    Origin,
    circumstances,
    require_same_base,
    require_same_pictures,
    require_steps,
    say_what_differs,
)
from erasediff_lora.training.precompute import Preparation, prepared
from erasediff_lora.training.sample_sheets import SampleSheets
from erasediff_lora.training.selection import Selection
from erasediff_lora.training.trainables import Trainable
from erasediff_lora.training.until_gone import UntilGone, hold_out
from erasediff_lora.training.weight_averaging import WeightAverage

log = logging.getLogger(__name__)
PREPARATION = 1_000_000


@dataclass
class Run:
    """What a step is made of, and where the run stands.

    Attributes:
        recipe: The recipe.
        denoiser: The base.
        trainable: θ, in the base's network.
        sampler: Draws the batches.
        objective: Finds the direction.
        optimizer: Steps along it.
        schedule: Of the learning rate.
        micro_batches: How the batches are cut.
        hooks: What else takes part.
        processes: Those that share the batches.
        preparation: What the objective computed beforehand, and what that cost.
        start: Steps that were taken before the run was resumed.
        skipped: Steps that were left out in a row.
        origin: What it is made of; None: nobody is going to ask.
    """

    recipe: Recipe
    denoiser: Denoiser
    trainable: Trainable
    sampler: Sampler
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    micro_batches: MicroBatches
    hooks: Hooks = field(default_factory=Hooks)
    processes: Processes = field(default_factory=Processes)
    preparation: Preparation = field(default_factory=Preparation)
    start: int = 0
    skipped: int = 0
    origin: Origin | None = None

    @property
    def fingerprints(self) -> list[str]:
        """Of the base, and of the pictures."""
        pictures = {} if self.origin is None else self.origin.pictures
        return [self.denoiser.fingerprint, *pictures.values()]


def set_up(recipe: Recipe, accelerator: Accelerator, *, resume: bool, micro_batches: int = 1) -> Run:
    """Load the base, load the sets, build the run, prepare the objective, restore the checkpoint.

    Args:
        recipe: What to erase, from what, how.
        accelerator: The processes.
        resume: Go on from the newest whole checkpoint, if there is one.
        micro_batches: Of `training.gradient_accumulation: auto` the number that is tried first.

    Raises:
        UserError: If something in the recipe cannot be used, or is not that of the run that is resumed.
    """
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    denoiser = load_base(recipe, accelerator)
    recipe = find_near(recipe, denoiser, accelerator)
    saved = find_checkpoint(recipe, denoiser) if resume else None
    require_same_step(accelerator, recipe.output, 0 if saved is None else saved.step)
    require_steps_of_base(recipe, denoiser)
    if not recipe.training.shard:  # to look takes the network, which is loaded elsewhere then
        warn_of_resolution(recipe, denoiser)
    before = None if saved is None else Origin.read(saved.trainer)
    forget, retain = load_data(recipe, denoiser, accelerator, before)
    cut = MicroBatches.of(recipe.training, accelerator.num_processes, micro_batches)
    run = build(recipe, denoiser, forget, retain, Processes.of(accelerator), cut, starts=saved is None)
    run.origin = Origin(
        denoiser.fingerprint,
        {"forget": forget.fingerprint, "retain": retain.fingerprint},
        circumstances(denoiser.device, run.processes.world),
        recipe.training.most_steps,
    )
    prepare(run, accelerator)
    if saved is not None:
        restore(run, saved)
    for note in [*run.objective.notes, run.trainable.summary]:
        log.info(note)
    if run.processes.world > 1:
        log.info("%d processes share every batch", run.processes.world)
    if run.processes.is_main:
        write_text(recipe.output / RECIPE_FILE, recipe.to_yaml())
    return run


def find_checkpoint(recipe: Recipe, denoiser: Denoiser) -> Checkpoint | None:
    """The newest whole checkpoint of the run, if there is one.

    Raises:
        UserError: If the run was begun with another recipe or base, has taken more steps than it is to take, or all of
            its checkpoints are damaged.
    """
    check_same_run(recipe)
    saved = newest_checkpoint(recipe.output)
    if saved is None:
        log.info("no checkpoint in %s yet: starting from the beginning", recipe.output)
        return None
    require_steps(recipe, saved.step, recipe.output)
    if (before := Origin.read(saved.trainer)) is not None:
        require_same_base(recipe, denoiser.fingerprint, before)
    return saved


def load_base(recipe: Recipe, accelerator: Accelerator) -> Denoiser:
    """The base, on the device that the recipe or accelerate says."""
    denoiser = denoisers.load(recipe.model)
    if recipe.model.device == "auto":
        denoiser.device = accelerator.device
    return denoiser


def find_near(recipe: Recipe, denoiser: Denoiser, accelerator: Accelerator) -> Recipe:
    """The recipe with the anchors and neighbours that it leaves open; the first process on a cache finds them.

    Raises:
        UserError: If no word is left for an anchor, or the cache cannot be written.
    """
    with one_per_cache_first(accelerator, recipe):
        return choose_near(recipe, denoiser, recipe.output if accelerator.is_main_process else None)


def load_data(
    recipe: Recipe, denoiser: Denoiser, accelerator: Accelerator, before: Origin | None = None
) -> tuple[EncodedSet, EncodedSet]:
    """D_f and D_r; the first process on a cache draws, reads and encodes them where they are not there.

    Args:
        recipe: The recipe.
        denoiser: The base.
        accelerator: The processes.
        before: What the run was made of that is resumed.

    Raises:
        UserError: For unusable pictures, or other ones than the run was begun with; when the cache cannot be written.
    """
    with one_per_cache_first(accelerator, recipe):
        listed = [sets.list_set(recipe, kind) for kind in KINDS]
        if before is not None:
            require_same_pictures(recipe, {one.kind: one.fingerprint for one in listed}, before)
        forget, retain = (
            sets.encoded(recipe, denoiser, one, sheet=recipe.output / SET_SHEETS[one.kind]) for one in listed
        )
    if accelerator.is_main_process:
        write_data_report(recipe.output, forget.report, retain.report)
        for kind, data in (("forget", forget), ("retain", retain)):
            log.info("%s set, %d pictures:\n%s", kind, len(data.latents), data.report.table())
    return forget, retain


def build(
    recipe: Recipe,
    denoiser: Denoiser,
    forget: EncodedSet,
    retain: EncodedSet,
    processes: Processes,
    micro_batches: MicroBatches,
    *,
    starts: bool = True,
) -> Run:
    """The adapter in the network, the optimizer, the objective, the sampler and the hooks.

    Args:
        recipe: What to erase, how.
        denoiser: The base; its encoders are released when they have done their work.
        forget: D_f.
        retain: D_r.
        processes: Those that share the batches.
        micro_batches: How the batches are cut.
        starts: Whether the run begins here, and so does the adapter.

    Raises:
        UserError: If the targets match nothing, an optimizer is not installed, or a set lacks what is needed of it.
    """
    trainable = _adapt_here(recipe, denoiser, processes, starts=starts)
    if not recipe.adversary.needs_encoders(recipe.model):
        denoiser.release_encoders()
    optimizer = create_optimizer(recipe.training, trainable.parameters)
    objective = create_objective(recipe, denoiser, trainable, processes)
    held: EncodedSet | None = None
    if recipe.training.steps == "auto":
        forget, held = hold_out(forget)

    def drawing(chosen: EncodedSet) -> BatchSampler:
        rank, world = processes.rank, processes.world
        return BatchSampler.of(recipe, chosen, retain, denoiser, rank=rank, world=world, micro_batches=micro_batches)

    hooks = create_hooks(recipe, denoiser, trainable, objective, forget, retain, processes, micro_batches)
    if held is not None:
        names = [concept.name for concept in recipe.forget.concepts]
        hooks.hooks.append(UntilGone(recipe.training, objective, drawing(held).forget, names))
    return Run(
        recipe,
        denoiser,
        trainable,
        drawing(forget),
        objective,
        optimizer,
        create_schedule(recipe.training, optimizer),
        micro_batches,
        hooks,
        processes,
    )


def create_hooks(
    recipe: Recipe,
    denoiser: Denoiser,
    trainable: Trainable,
    objective: Objective,
    forget: EncodedSet,
    retain: EncodedSet,
    processes: Processes,
    micro_batches: MicroBatches,
) -> Hooks:
    """What takes part in a run besides the objective, in the order in which it is asked.

    Raises:
        UserError: If no picture of the forget set shows a concept that is searched for.
    """
    training = recipe.training
    hooks: list[Hook] = []
    if len(names := [concept.name for concept in recipe.forget.concepts]) > 1:
        hooks.append(ConceptTurns(names, training.batch_size))
    if recipe.retain.focus:
        base = objective.network.predict_base
        looked = DriftSampler(recipe.retain, denoiser, retain, base, processes.mean, training.seed, micro_batches)
        hooks.append(looked)
    if recipe.adversary.pool:
        hooks.append(AdversarialSet(recipe, denoiser, forget, processes, micro_batches))
    if processes.is_main:
        if training.average > 1 and not training.evaluate_every:
            hooks.append(WeightAverage(training, trainable))
        if training.sample_every:
            hooks.append(SampleSheets(recipe, denoiser, training.sample_every))
        if training.evaluate_every:
            hooks.append(Selection(recipe, denoiser, trainable, training.evaluate_every))
    return Hooks(hooks)


def adapt(recipe: Recipe, denoiser: Denoiser) -> Trainable:
    """Give the frozen network what is trained, and make it ready for training."""
    settings = recipe.adapter.model_copy(update={"targets": reading_layers(recipe, denoiser)})
    trainable = trainables.create(settings, denoiser, recipe.training.seed)
    network = denoiser.network
    network.train()  # for gradient checkpointing and LoRA dropout; diffusion UNets have no dropout of their own
    if recipe.training.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return trainable


def _adapt_here(recipe: Recipe, denoiser: Denoiser, processes: Processes, *, starts: bool) -> Trainable:
    """Adapt the network, and lay it out, compile and split it as the recipe says."""
    training, device, world = recipe.training, denoiser.device, processes.world
    split = is_split(recipe, world)
    if split:
        denoiser.device = torch.device("cpu")
    trainable = adapt(recipe, denoiser)
    if starts and recipe.starts_from_closed_form:
        start_from_closed_form(recipe, denoiser, trainable)
    network = denoiser.network
    if training.channels_last:
        network.to(memory_format=torch.channels_last)
    if training.compile:
        getattr(network, "compile_repeated_blocks" if network._repeated_blocks else "compile")()
    if split:
        shard(network, trainable.parameters, world, device)
        denoiser.device = device
    if world > 1:  # computed by each, and machines may round differently
        assign(trainable.parameters, [processes.mean(parameter.detach()) for parameter in trainable.parameters])
    return trainable


def is_split(recipe: Recipe, world: int) -> bool:
    """Whether so many processes split the frozen weights."""
    return recipe.training.shard and world > 1


def create_objective(
    recipe: Recipe, denoiser: Denoiser, trainable: Trainable, processes: Processes | None = None
) -> Objective:
    """The recipe's objective on the network; one process without `processes`."""
    processes = processes or Processes()

    def predict_base(noisy: Tensor, timesteps: Tensor, prompts: Condition) -> Tensor:
        with trainable.disabled():
            return denoiser.predict(noisy, timesteps, prompts)

    return objectives.create(
        recipe.objective,
        Network(
            trainable.parameters,
            denoiser.predict,
            predict_base,
            mean=processes.mean,
            loss_scale=loss_scale(denoiser.dtype),
            base_weights=trainable.base_weights,
            weight_changes=trainable.weight_changes,
            train_timesteps=denoiser.noise_scheduler.config.num_train_timesteps,
            is_split=is_split(recipe, processes.world),
            group_gradients=None if recipe.training.compile else trainable.group_gradients,
            one_pass=recipe.training.one_pass,
        ),
    )


def prepare(run: Run, accelerator: Accelerator) -> None:
    """Let the objective compute what it needs once, on the fresh adapter: a resumed run does it alike.

    The batches are of D_f and D_r as they are, from steps far from the loop's.
    """
    plain = run.sampler.plain

    def make() -> Sequence[Tensor]:
        return run.objective.prepare(lambda step: plain.draw(PREPARATION + step))

    run.preparation = prepared(
        run.recipe,
        run.fingerprints,
        accelerator,
        make if run.processes.world > 1 else lambda: run.micro_batches.fit(make),  # several would wait for one
    )
    run.objective.prepared = [tensor.to(run.denoiser.device) for tensor in run.preparation.tensors]


def restore(run: Run, saved: Checkpoint) -> None:
    """Go on from a checkpoint, and say what is not as it was.

    Raises:
        UserError: If it is not one of such a run.
    """
    run.start = saved.step
    try:
        run.trainable.load_state(saved.adapter)
        run.optimizer.load_state_dict(saved.trainer["optimizer"])
        run.schedule.load_state_dict(saved.trainer["schedule"])
        run.hooks.load_state(saved.trainer["hooks"])
        run.skipped = int(saved.trainer.get("skipped", 0))
        if run.micro_batches.may_grow and (at_once := saved.trainer.get("at_once")) is not None:
            run.micro_batches.keep(at_once)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        what = f"its checkpoint of step {saved.step} is not one of this run: {brief(' '.join(str(error).split()))}."
        raise UserError(Problem("--resume", str(run.recipe.output), what, "Start anew with --overwrite.")) from error
    before = Origin.read(saved.trainer)
    if before is None or run.origin is None:
        return
    say_what_differs(run.origin, before)
    if run.origin.steps != before.steps and run.recipe.training.lr_schedule != "constant":
        was = run.optimizer.param_groups[0]["lr"]
        now = restart_schedule(run.optimizer, run.schedule)
        text = "the run was to take %d steps and now takes %d: the learning rate goes on from %g, not from %g"
        log.warning(text, before.steps, run.origin.steps, now, was)


def trainer_state(run: Run) -> dict[str, Any]:
    """What `restore` reads."""
    return {
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "hooks": run.hooks.state(),
        "skipped": run.skipped,
        "at_once": run.micro_batches.at_once,
        "origin": None if run.origin is None else run.origin.state(),
    }
