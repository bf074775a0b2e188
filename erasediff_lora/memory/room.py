"""Whether a run fits, and the cheapest change that makes it fit."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from erasediff_lora import denoisers
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.memory.plan import MemoryPlan, plan
from erasediff_lora.recipe import Recipe, overlay

log = logging.getLogger(__name__)
SMALL_BASE = 256 * 2**20
"""Bytes of weight files below which a training is not planned: it fits everywhere, and is over in minutes."""


def gib(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.2f} GiB"


def changes(recipe: Recipe, device: str) -> list[tuple[str, list[Any]]]:
    """Fields that save memory with their values, the cheapest first: speed before precision."""
    training = recipe.training
    found: list[tuple[str, list[Any]]] = []
    halves = [recipe.sampling.batch_size >> k for k in range(1, recipe.sampling.batch_size.bit_length())]
    found.append(("sampling.batch_size", halves))
    cuts = [
        n for n in range(training.gradient_accumulation + 1, training.batch_size + 1) if training.batch_size % n == 0
    ]
    found.append(("training.gradient_accumulation", cuts))
    if not training.gradient_checkpointing:
        found.append(("training.gradient_checkpointing", [True]))
    if training.optimizer == "adamw":
        found.append(("training.optimizer", ["adamw8bit"]))
    if recipe.adapter.kind == "none":
        return found  # its weights are trained in float32
    if recipe.model.dtype == "float32" or (recipe.model.dtype == "auto" and device == "cpu"):
        found.append(("model.dtype", ["bfloat16"]))
    if recipe.model.quantize is None and device == "cuda":
        found.append(("model.quantize", ["int8", "nf4"]))
    return found


def remedy(recipe: Recipe, found: MemoryPlan, capacity: int) -> tuple[dict[str, Any], int] | None:
    """The fewest and cheapest overrides under which the run fits, and its peak; None if there are none."""
    options = changes(recipe, found.device)
    strongest = {name: values[-1] for name, values in options if values}
    if not strongest or plan(_changed(recipe, strongest)).peak > capacity:
        return None
    for overrides in _combinations(options):
        if (peak := plan(_changed(recipe, overrides)).peak) <= capacity:
            return overrides, peak
    return strongest, plan(_changed(recipe, strongest)).peak


def _combinations(options: list[tuple[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    """One change, then two, …; of several fields all but the last one tried at their strongest."""
    usable = [(name, values) for name, values in options if values]
    for count in range(1, len(usable) + 1):
        for chosen in itertools.combinations(usable, count):
            *fixed, (last, values) = reversed(chosen)
            for value in values:
                yield {name: strong[-1] for name, strong in fixed} | {last: value}


def _changed(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    return Recipe.parse(overlay(recipe.model_dump(mode="json"), overrides))


def require_room(recipe: Recipe) -> None:
    """Refuse in advance a training that cannot fit; say what it will take.

    Raises:
        UserError: With the cheapest change that makes it fit.
    """
    source = denoisers.load(recipe.model).source
    if source.is_file():
        if recipe.model.config is None:
            return  # a checkpoint alone does not say what network it holds
        size = source.stat().st_size
    else:
        size = sum(file.stat().st_size for file in source.rglob("*.safetensors"))
    if not recipe.training.check_memory or size < SMALL_BASE:
        return
    found = plan(recipe)
    capacity = capacity_of(found)
    log.info("memory: %s at the peak of %s free", gib(found.peak), gib(capacity))
    if found.peak > capacity:
        raise UserError(shortage("training", recipe, found, capacity))


def capacity_of(found: MemoryPlan) -> int:
    """Bytes of the device that this process may fill."""
    if found.device == "cuda":
        return int(torch.cuda.mem_get_info()[1])
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


def shortage(what: str, recipe: Recipe, found: MemoryPlan, capacity: int) -> Problem:
    """The complaint about a run that does not fit, with what would help."""
    largest = max(found.phases, key=lambda phase: phase.peak)
    helped = remedy(recipe, found, capacity)
    if helped is None:
        advice = "No setting makes it fit: choose a lower sampling.resolution or a smaller base."
    else:
        overrides, peak = helped
        settings = " ".join(f"--{name} {str(value).lower()}" for name, value in overrides.items())
        advice = f"It fits with {settings} ({gib(peak)})."
    return Problem(what, gib(capacity), f"is too little: to {largest.name} takes {gib(largest.peak)}.", advice)
