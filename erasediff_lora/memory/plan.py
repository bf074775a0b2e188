"""Predicts a run's peak memory: the very step of the training program, on tensors that have shapes only."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from safetensors import safe_open
from torch import nn

from erasediff_lora import denoisers
from erasediff_lora.data.micro_batches import MicroBatches
from erasediff_lora.denoisers import Denoiser, loading
from erasediff_lora.evaluation.picture_store import MOST_HELD, PIXEL_BYTES
from erasediff_lora.evaluation.rehearsal import rehearsals
from erasediff_lora.machine.launcher import told
from erasediff_lora.machine.network import offline
from erasediff_lora.memory.hollow_run import Repeated, hollow_run, latent_shape
from erasediff_lora.memory.sizes import frozen_bytes, kernel_bytes, other_bytes, pipeline_bytes
from erasediff_lora.memory.tracker import MemoryTracker, on_meta
from erasediff_lora.objectives import Batch
from erasediff_lora.objectives.base import mean_squared_error
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import ATTACKS
from erasediff_lora.training import loop
from erasediff_lora.training.closed_form_start import AT_ONCE
from erasediff_lora.training.concept_turns import room
from erasediff_lora.training.drift_sampling import LOOKED_AT
from erasediff_lora.training.fsdp import largest_group
from erasediff_lora.training.optimizers import state_bytes
from erasediff_lora.training.setup import Run, adapt

log = logging.getLogger(__name__)
CUDA_CONTEXT = 450 * 2**20
"""Bytes that a process takes of a GPU before its first tensor."""
CPU_LIBRARIES = 64 * 2**20
"""Bytes by which a process grows when it first computes: what torch and its kernels load then."""
LONGEST_PROMPT = 77
"""Tokens that a search is counted with."""
GATHERED_BLOCKS = 2
"""Blocks of a split network that are whole at once: the one that computes, and the next."""
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What safetensors calls floats -> torch's."""
SLACK = 0.05
"""Share of the activations that the allocator takes on top."""
KINDS_DRAWN = 5
"""Of an evaluation: forget and retain pictures of two models, and those that distances are measured from."""


@dataclass(frozen=True)
class Phase:
    """What a stage of a run holds at its peak.

    Attributes:
        name: The stage.
        parts: Bytes by what holds them.
    """

    name: str
    parts: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """The stages of a run, one after the other on one device.

    Attributes:
        device: 'cpu', 'cuda', 'mps' or 'xpu'.
        phases: In order.
    """

    device: str
    phases: Sequence[Phase]

    @property
    def peak(self) -> int:
        """Bytes of the largest stage."""
        return max(phase.peak for phase in self.phases)

    def __getitem__(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)


def plan(recipe: Recipe, phases: Sequence[str] = ("draw", "train", "evaluate")) -> MemoryPlan:
    """Predict the memory of drawing the sets, of training and of evaluating, from configuration files alone.

    Where no steps are taken, there is one stage: making the adapter as it starts. A `gradient_accumulation: auto` is
    counted as the one that takes least, a picture at a time.

    Args:
        recipe: The run.
        phases: Which of its stages.

    Raises:
        UserError: If the base does not say what its networks are, or the targets match nothing.
    """
    recipe = recipe.model_copy(update={"model": loading.described(recipe.model)})
    if recipe.training.gradient_accumulation == "auto":
        recipe = cut_into(recipe, max(1, recipe.training.batch_size // processes()))
    denoiser = denoisers.load(recipe.model)
    device = denoiser.device.type
    denoiser.device = torch.device("meta")
    if recipe.steps == 0:
        phases = ["start", *(phase for phase in phases if phase == "evaluate")]
    if device == "cpu":  # where what waits takes memory too
        own = recipe.model.model_copy(update={"offload": False, "device": device})
        recipe = recipe.model_copy(update={"model": own})
    else:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"average": 1})})
    found = {name: PHASES[name](recipe, copy.copy(denoiser)) for name in phases}
    if device == "cpu" and "evaluate" in found:
        found["evaluate"] |= _looking(recipe, copy.copy(denoiser))
    runtime = CUDA_CONTEXT  # and on a CPU what the process takes already, its libraries loaded by now
    if device == "cpu":
        runtime = psutil.Process().memory_info().rss + CPU_LIBRARIES
    return MemoryPlan(device, [Phase(name, {"runtime": runtime} | parts) for name, parts in found.items()])


def cut_into(recipe: Recipe, micro_batches: int) -> Recipe:
    """The recipe with a number of micro-batches."""
    training = recipe.training.model_copy(update={"gradient_accumulation": micro_batches})
    return recipe.model_copy(update={"training": training})


def _drawing(recipe: Recipe, denoiser: Denoiser) -> dict[str, int]:
    """The pipeline, whole or the largest part, and the larger of a guided step and the autoencoder on its pictures."""
    with on_meta() as memory, torch.no_grad():
        networks = denoiser.without_weights()
        has_images = [data.images is not None for data in (recipe.forget, recipe.retain)]
        count = recipe.sampling.batch_size
        if not any(has_images):
            count = min(count, max(recipe.forget.count, recipe.retain.count))
        draws = not all(has_images) or recipe.objective.counterparts
        if not draws and recipe.model.device == "cpu" and _stays_on_disk(denoiser):
            networks = {name: part for name, part in networks.items() if part is not denoiser.network}
        return _sampled(recipe, denoiser, networks, memory, count, draws=draws, encodes=any(has_images))


def _stays_on_disk(denoiser: Denoiser) -> bool:
    """Whether the network is mapped from its file as it is, and so takes no memory where nothing asks for it."""
    files = denoiser.source.glob(f"{denoiser.component}/*.safetensors") if denoiser.source.is_dir() else []
    for file in sorted(files):
        with safe_open(file, framework="pt") as stored:
            name = next(iter(stored.keys()), None)
            return name is not None and STORED.get(stored.get_slice(name).get_dtype()) == denoiser.dtype
    return False


def _sampled(
    recipe: Recipe,
    denoiser: Denoiser,
    networks: Mapping[str, Any],
    memory: MemoryTracker,
    count: int,
    *,
    draws: bool = True,
    encodes: bool = False,
) -> dict[str, int]:
    """What it takes to draw, decode and encode so many pictures at once."""
    weights = pipeline_bytes(recipe, denoiser, networks)
    latents = _batch(recipe, denoiser, count).noisy
    memory.reset()
    before = memory.live
    if draws:
        batch = _batch(recipe, denoiser, count * denoiser.rows_drawn(recipe.sampling.guidance))
        denoiser.predict(batch.noisy, batch.timesteps, batch.prompts)
        del batch
    if (vae := networks.get("vae")) is not None:
        side = recipe.sampling.resolution or denoiser.resolution
        denoiser.decode_with(vae, latents)  # for a sheet, where pictures are read
        if encodes:
            denoiser.encode_with(vae, torch.empty(count, 3, side, side, dtype=denoiser.dtype))
    activations = memory.peak - before
    kernels = max(map(kernel_bytes, networks.values()), default=0)
    return {"weights": weights, "activations": int(activations * (1 + SLACK)), "kernels": kernels}


def _evaluating(recipe: Recipe, denoiser: Denoiser) -> dict[str, int]:
    """Drawing with the adapter in place, and what attacks need; in the midst of a training its optimizer waits."""
    training, evaluation = recipe.training, recipe.evaluation
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"offload": False})})
    attacked = 0
    with on_meta() as memory:
        networks = denoiser.without_weights()
        with torch.no_grad():
            drawn = _sampled(recipe, denoiser, networks, memory, recipe.sampling.batch_size)
        trainable = adapt(recipe, denoiser)
        trained = sum(parameter.nbytes for parameter in trainable.parameters)
        for name in evaluation.attacks:
            if (count := ATTACKS[name](name).searched_at_once(evaluation, denoiser.network)) > 0:
                memory.reset()
                before = memory.live
                _search(denoiser, networks, _batch(recipe, denoiser, count))
                attacked = max(attacked, memory.peak - before)
    parts = drawn | {"trained": trained}
    parts["activations"] = max(parts["activations"], int(attacked * (1 + SLACK)))
    if training.evaluate_every or training.sample_every:
        parts["trained"] *= min(training.average, 2) + bool(training.evaluate_every)  # the one that is measured
        parts["optimizer"] = state_bytes(training, trainable.parameters)
    return parts


def _looking(recipe: Recipe, denoiser: Denoiser) -> dict[str, int]:
    """The judge, the networks of metrics, and the pictures that they look at: in the memory of the processor."""
    options, held, at_work = recipe.evaluation, 0, 0
    for name, rehearse in rehearsals(options).items():
        try:
            with (
                offline(),
                on_meta() as memory,
            ):  # a judge that is still to be fetched would be asked for again and again
                kept = rehearse()
                held, at_work = held + memory.live, max(at_work, memory.peak - memory.live)
                del kept
        except Exception as error:  # of a package or of weights that are missing: a run names them before it begins
            log.warning("what %s takes is not counted: %s", name, " ".join(str(error).split()))
    with on_meta():
        denoiser.without_weights()  # which say how large its pictures are
    side = recipe.sampling.resolution or denoiser.resolution
    count = max(options.forget_samples, options.retain_samples)
    kinds = KINDS_DRAWN + 2 * len(options.attacks)  # those of the base, and of the erased model
    return {"judges": held + at_work, "pictures": min(MOST_HELD, kinds * count * PIXEL_BYTES * side**2)}


def _starting(recipe: Recipe, denoiser: Denoiser) -> dict[str, int]:
    """The whole pipeline and the adapter; the closed form itself takes a few square matrices of a token's width."""
    with on_meta() as memory, torch.no_grad():
        networks = denoiser.without_weights()
        others = other_bytes(recipe, networks, denoiser.network)
        weights = sum(others) + frozen_bytes(recipe, denoiser.network)
        trained = sum(parameter.nbytes for parameter in adapt(recipe, denoiser).parameters)
        memory.reset()
        prompts = denoiser.hollow_prompts(AT_ONCE).tokens
        width = prompts.shape[-1]
        solved = 6 * 8 * width**2 + 3 * 8 * prompts.numel()  # float64: sums, their inverse; tokens, twice as many goals
    return {"weights": weights, "trained": trained, "activations": prompts.nbytes + solved}


def _training(recipe: Recipe, denoiser: Denoiser) -> dict[str, int]:
    """A step of the loop, what the objective prepares before it, and the searches and measurements between steps."""
    recipe = _shortened(recipe)
    at_once = MicroBatches.of(recipe.training).at_once
    with on_meta() as memory:
        networks = denoiser.without_weights()
    sampler = Repeated.of(recipe, denoiser)
    with on_meta(memory):
        sampler = sampler.to(denoiser.device)
        network = denoiser.network
        encoders = 0
        if recipe.adversary.needs_encoders(recipe.model):  # they stay, since its conditions are token embeddings
            encoders = sum(other_bytes(recipe, networks, network))
        world = processes()
        frozen = frozen_bytes(recipe, network)
        if recipe.training.shard and world > 1:
            frozen = min(frozen, frozen // world + GATHERED_BLOCKS * largest_group(network))
        kernels = kernel_bytes(network)
        run = hollow_run(recipe, denoiser, sampler)
        objective, parameters = run.objective, run.trainable.parameters
        trained = sum(parameter.nbytes for parameter in parameters)
        memory.reset()
        before = memory.live
        objective.prepared = objective.prepare(sampler.plain.draw)
        loop.take_step(run, 0)
        if recipe.adversary.pool:
            reading = networks if recipe.adversary.needs_encoders(recipe.model) else {}
            side_by_side = recipe.adversary.batch_size * min(recipe.adversary.searches, len(recipe.forget.concepts))
            _search(denoiser, reading, _batch(recipe, denoiser, min(side_by_side, at_once)))
        if recipe.retain.focus:
            _look(run, _batch(recipe, denoiser, min(recipe.retain.focus_samples, LOOKED_AT * at_once)))
        at_work = memory.peak - before
    gradients = min(trained, at_work)
    apart = min(len(recipe.forget.concepts), room(recipe.training.batch_size))  # concepts, each with a gradient
    apart += recipe.training.one_pass  # and the retained samples
    return {
        "weights": frozen + encoders,
        # An adapter, or the copy that is kept of the base's own weights; and the sum that the mean is taken of.
        "trained": min(recipe.training.average, 2) * trained,
        "gradients": gradients + (2 * apart * trained if apart > 1 else 0),
        "optimizer": state_bytes(recipe.training, parameters),
        "activations": int((at_work - gradients) * (1 + SLACK)),
        "kernels": kernels,
    }


def _shortened(recipe: Recipe) -> Recipe:
    """One process's share, of two micro-batches at most, and one of all that an objective repeats: no less memory."""
    training = recipe.training
    cut = MicroBatches.of(training, processes())
    parts, rows = min(cut.count, 2), cut.at_once
    changes: dict[str, Any] = {
        "training": training.model_copy(update={"batch_size": rows * parts, "gradient_accumulation": parts}),
        "objective": recipe.objective.model_copy(update=dict.fromkeys(recipe.objective.repeats, 1)),
    }
    return recipe.model_copy(update=changes)


def _search(denoiser: Denoiser, networks: Mapping[str, nn.Module], batch: Batch) -> None:
    """A step of a search for a condition: what the encoders keep, and what the network does."""
    kept = [_encoded(network, len(batch)) for name, network in networks.items() if name.startswith("text_encoder")]
    tokens = batch.prompts.tokens.clone().requires_grad_()
    prompts = replace(batch.prompts, tokens=tokens)
    loss = mean_squared_error(denoiser.predict(batch.noisy, batch.timesteps, prompts), batch.target)
    torch.autograd.grad(loss, [tokens])
    del kept


def _encoded(encoder: Any, rows: int) -> Any:
    """What an encoder makes of prompts, differentiable in the embeddings of their tokens."""
    length = min(LONGEST_PROMPT, getattr(encoder.config, "max_position_embeddings", LONGEST_PROMPT))
    embeddings = encoder.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_())
    try:
        return encoder(torch.zeros(rows, length, dtype=torch.long), output_hidden_states=True)
    finally:
        handle.remove()


@torch.no_grad()
def _look(run: Run, batch: Batch) -> None:
    """A measurement of how far predictions have moved."""
    moved = run.denoiser.predict(batch.noisy, batch.timesteps, batch.prompts)
    run.objective.network.predict_base(batch.noisy, batch.timesteps, batch.prompts)
    del moved


PHASES = {"draw": _drawing, "train": _training, "start": _starting, "evaluate": _evaluating}
"""The stages of a run, in order."""


def processes() -> int:
    """Processes that share a batch: launchers set WORLD_SIZE before any of them starts to talk."""
    return told("WORLD_SIZE", 1)


def _batch(recipe: Recipe, denoiser: Denoiser, count: int) -> Batch:
    """Noised pictures with their prompts."""
    latents = torch.empty(count, *latent_shape(recipe, denoiser), dtype=denoiser.dtype)
    prompts = denoiser.hollow_prompts(count)
    return Batch(latents, torch.zeros(count, dtype=torch.long), prompts, torch.empty(latents.shape))
