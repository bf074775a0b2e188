"""What an objective computes before the first step: made once, cached, and its time remembered."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from erasediff_lora.recipe import FREE_FIELDS, RESULT_SECTIONS, Recipe
from erasediff_lora.storage import checksummed
from erasediff_lora.storage.files import sha256
from erasediff_lora.storage.locks import making

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """Tensors of an objective, and what they cost when they were made.

    Attributes:
        tensors: What `Objective.prepare` returned.
        seconds: By the clock.
        processor_seconds: Of the process.
    """

    tensors: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    processor_seconds: float = 0.0


def prepared(
    recipe: Recipe, fingerprints: Sequence[str], accelerator: Accelerator, make: Callable[[], Sequence[Tensor]]
) -> Preparation:
    """From the cache, or made by all processes together and cached.

    The first process of the job alone reads and writes, and tells the others. Where there are others it holds no lock
    while it waits for them: two jobs that meet make the tensors twice, and none waits for the other's processes.

    Args:
        recipe: All but where it is written determines the tensors.
        fingerprints: Of the base, and of the pictures.
        accelerator: The processes, which share a batch and so make the tensors together or not at all.
        make: Computes the tensors on the fresh adapter.

    Raises:
        UserError: If the cache cannot be written.
    """
    values = recipe.model_dump(mode="json", include=RESULT_SECTIONS)
    values["training"] = {name: value for name, value in values["training"].items() if name not in FREE_FIELDS}
    key = sha256(json.dumps([values, *fingerprints, accelerator.num_processes], sort_keys=True).encode())
    file = recipe.cache.expanduser() / f"prepared-{key[:32]}.safetensors"
    if (found := _told(file, accelerator)) is not None:
        return found
    is_alone = accelerator.num_processes == 1
    with making(file, "what the objective prepares") if is_alone else nullcontext():
        if is_alone and (found := _told(file, accelerator)) is not None:  # made by the run that was waited for
            return found
        began = time.perf_counter(), time.process_time()
        tensors = [tensor.detach().cpu() for tensor in make()]
        made = Preparation(tensors, time.perf_counter() - began[0], time.process_time() - began[1])
        if tensors and accelerator.is_main_process:
            costs = {"seconds": str(made.seconds), "processor_seconds": str(made.processor_seconds)}
            checksummed.write({f"{index:06d}": t for index, t in enumerate(tensors)}, file, costs)
    return made


def _told(file: Path, accelerator: Accelerator) -> Preparation | None:
    """The entry of the first process's cache, if it has it."""
    found = [_read(file) if accelerator.is_main_process else None]
    broadcast_object_list(found)
    if found[0] is not None:
        log.info("the objective's preparation is from the cache %s", file)
    return found[0]


def _read(file: Path) -> Preparation | None:
    if (found := checksummed.cached(file)) is None:
        return None
    tensors, costs = found
    in_order = [tensors[name] for name in sorted(tensors)]
    return Preparation(in_order, float(costs["seconds"]), float(costs["processor_seconds"]))
