"""Whether a run fits, and the cheapest change that makes it fit."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from erasediff_lora import denoisers
from erasediff_lora.data.micro_batches import divisors
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.machine import devices
from erasediff_lora.machine.launcher import told
from erasediff_lora.memory.plan import CUDA_CONTEXT, MemoryPlan, cut_into, plan, processes
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.yaml_io import overlay
from erasediff_lora.registry import FAMILIES

log = logging.getLogger(__name__)
CGROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""
SMALL_BASE = 256 * 2**20
"""Bytes of weight files below which a training is not planned: it fits everywhere, and is over in minutes."""


def gib(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.2f} GiB"


def changes(recipe: Recipe, device: str) -> list[tuple[str, list[Any]]]:
    """Fields that save memory in training, each with its values from weak to strong; the cheapest field first."""
    training = recipe.training
    share = training.batch_size // processes()
    parts = training.gradient_accumulation
    found: list[tuple[str, list[Any]]] = [
        ("training.gradient_accumulation", _doubled(parts, share) if isinstance(parts, int) else []),
        ("training.gradient_checkpointing", [] if training.gradient_checkpointing else [True]),
        ("training.optimizer", ["adamw8bit"] if training.optimizer == "adamw" else []),
    ]
    if recipe.adapter.trains_base:
        return found  # its weights are trained in float32
    wide = recipe.model.dtype == "float32" or (recipe.model.dtype == "auto" and device == "cpu")
    found.append(("model.dtype", ["bfloat16"] if wide else []))
    may_quantize = recipe.model.quantize is None and device in ("cuda", "xpu")
    found.append(("model.quantize", ["int8", "nf4"] if may_quantize else []))
    return found


def _doubled(now: int, most: int) -> list[int]:
    """2, 4, 8 … times as much, and `most` at the end."""
    values = []
    while now < most:
        now = min(2 * now, most)
        values.append(now)
    return values


def remedy(recipe: Recipe, found: MemoryPlan, capacity: int) -> tuple[dict[str, Any], int] | None:
    """The fewest and cheapest overrides under which the run fits, and its peak; None if there are none.

    Where it does not fit to draw or to train, the evaluation is left aside: the adapter is there by then.
    """

    def fits(overrides: dict[str, Any], phase: str) -> bool:
        return plan(_changed(recipe, overrides), [phase]).peak <= capacity

    stages = [phase.name for phase in found.phases if phase.name != "evaluate"]
    size = recipe.sampling.batch_size
    smaller: list[dict[str, Any]] = [{"sampling.batch_size": size >> k} for k in range(1, size.bit_length())]
    if all(found[stage].peak <= capacity for stage in stages):
        best = next((change for change in smaller if fits(change, "evaluate")), None)
        return None if best is None else (best, plan(_changed(recipe, best)).peak)
    overrides: dict[str, Any] | None = {}
    if "train" in stages and found["train"].peak > capacity:
        overrides = _first_that_fits(changes(recipe, found.device), lambda chosen: fits(chosen, "train"))
    if overrides is None:
        return None
    if "draw" in stages and not fits(overrides, "draw"):
        if found.device != "cpu" and may_offload(recipe):
            smaller += [{"model.offload": True}, *({"model.offload": True} | batch for batch in smaller)]
        if found.device in ("cuda", "xpu") and may_quantize_encoders(recipe):
            smaller += [
                {"model.quantize_encoders": kind} | other for kind in ("int8", "nf4") for other in [{}, *smaller]
            ]
        fitting = (change for change in smaller if fits(overrides | change, "draw"))
        if (best := next(fitting, None)) is None:
            return None
        overrides = overrides | best
    return (overrides, plan(_changed(recipe, overrides), stages).peak) if overrides else None


def may_offload(recipe: Recipe) -> bool:
    """Whether the networks may take turns: where there are several, and no search needs them together."""
    several = FAMILIES[recipe.model.family].has_autoencoder
    return several and not (recipe.model.offload or recipe.adversary.needs_encoders(recipe.model))


def may_quantize_encoders(recipe: Recipe) -> bool:
    """Whether there are text encoders, which are whole so far."""
    family = FAMILIES[recipe.model.family]
    return family.text_to_image and family.in_diffusers and recipe.model.quantize_encoders is None


def _first_that_fits(
    options: list[tuple[str, list[Any]]], fits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any] | None:
    """One change, then two, …: of the first that are enough at their strongest, the weakest value of each."""
    usable = [(name, values) for name, values in options if values]
    if not fits({name: values[-1] for name, values in usable}):
        return None
    for count in range(1, len(usable) + 1):
        for chosen in itertools.combinations(usable, count):
            overrides = {name: values[-1] for name, values in chosen}
            if fits(overrides):
                for name, values in chosen:
                    weakest = (v for v in values if v == values[-1] or fits(overrides | {name: v}))
                    overrides[name] = next(weakest)
                return overrides
    return None


def _changed(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    return Recipe.parse(overlay(recipe.model_dump(mode="json"), overrides))


def require_room(recipe: Recipe) -> int:
    """Refuse in advance a training that cannot fit; say what it will take, and whether its evaluation fits.

    Returns:
        Micro-batches that a step is to begin with: of `gradient_accumulation: auto` the fewest that the plan lets fit,
        and one where there is no plan.

    Raises:
        UserError: With the cheapest change that makes it fit.
    """
    parts = recipe.training.gradient_accumulation
    begin = parts if isinstance(parts, int) else 1
    if not recipe.training.check_memory:
        return begin
    base = denoisers.load(recipe.model)
    source = base.source
    if source.is_file():
        if getattr(base, "described", None) is None:
            return begin  # a checkpoint alone does not say what network it holds
        size = source.stat().st_size
    else:
        size = sum(file.stat().st_size for file in source.rglob("*.safetensors"))
    if size < SMALL_BASE:
        return begin
    recipe, found, capacity = decided(recipe)
    training = MemoryPlan(found.device, [phase for phase in found.phases if phase.name != "evaluate"])
    log.info("memory: %s at the peak of %s free", gib(training.peak), gib(capacity))
    if training.peak > capacity:
        raise UserError(shortage("training", recipe, training, capacity))
    if found.peak > capacity:  # the adapter is there by then
        log.warning("%s", shortage("evaluation", recipe, found, capacity))
    parts = recipe.training.gradient_accumulation
    return parts if isinstance(parts, int) else begin


def decided(recipe: Recipe, capacity: int | None = None) -> tuple[Recipe, MemoryPlan, int]:
    """The recipe with the fewest micro-batches that fit, if it leaves them open and any do; its plan; the room.

    Args:
        recipe: The run.
        capacity: Bytes; None: what this machine has.
    """
    found = plan(recipe)
    capacity = capacity_of(found) if capacity is None else capacity
    if recipe.training.gradient_accumulation != "auto" or "train" not in [phase.name for phase in found.phases]:
        return recipe, found, capacity
    if found["train"].peak > capacity:  # a picture at a time
        return recipe, found, capacity
    counts = list(divisors(max(1, recipe.training.batch_size // processes())))
    low, high = 0, len(counts) - 1
    while low < high:  # it is known to fit with the last
        middle = (low + high) // 2
        fits = plan(cut_into(recipe, counts[middle]), ["train"])["train"].peak <= capacity
        low, high = (low, middle) if fits else (middle + 1, high)
    chosen = cut_into(recipe, counts[low])
    return chosen, plan(chosen), capacity


def capacity_of(found: MemoryPlan) -> int:
    """Bytes of the device that this process may fill: what is free there, and what it holds itself."""
    if found.device == "cuda":
        card = told("LOCAL_RANK", 0) % max(1, torch.cuda.device_count())
        free, whole = torch.cuda.mem_get_info(card)  # by now this process has its context there
        return int(min(whole, free + torch.cuda.memory_reserved(card) + CUDA_CONTEXT))
    if (own := devices.capacity(found.device)) is not None:
        return own
    here = told("LOCAL_WORLD_SIZE", 1)
    available = min([psutil.virtual_memory().available, *_left_in_container()])
    return available // here + psutil.Process().memory_info().rss


def _left_in_container() -> list[int]:
    """Bytes that the limit of a container leaves: what it holds of files can be given up; none without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit == "max":
            return []
        held = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        files = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return [max(0, int(limit) - held + files)]
    except (OSError, ValueError, IndexError):
        return []


def shortage(what: str, recipe: Recipe, found: MemoryPlan, capacity: int) -> Problem:
    """The complaint about a run that does not fit, with what would help."""
    tight = [phase for phase in found.phases if phase.peak > capacity]
    largest = max(
        (phase for phase in tight if phase.name != "evaluate"), key=lambda phase: phase.peak, default=tight[-1]
    )
    helped = remedy(recipe, found, capacity)
    if helped is None:
        advice = "No setting makes it fit: choose a lower sampling.resolution or a smaller base."
        if largest.name == "evaluate":
            advice = "Leave out evaluation.attacks, or evaluate on another machine: erasediff-lora evaluate RUN."
    else:
        overrides, peak = helped
        settings = " ".join(f"--{name} {str(value).lower()}" for name, value in overrides.items())
        advice = f"It fits with {settings} ({gib(peak)})."
    alone = recipe.training.gradient_accumulation == "auto" and largest.name == "train"
    even = ", even with one picture at once" if alone else ""
    return Problem(what, gib(capacity), f"is too little: to {largest.name} takes {gib(largest.peak)}{even}.", advice)
