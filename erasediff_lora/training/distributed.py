"""Several processes under accelerate: they start, stop and fail together."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.machine import devices, launcher
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import OURS, sha256, writable
from erasediff_lora.storage.run_folder import lock_run
from erasediff_lora.training.stop_signal import StopSignal

LONGEST_WAIT = timedelta(hours=24)
"""The first process may draw the sets for hours while the others wait; torch's own limit is 10 minutes."""
LOST = ("connection closed", "connection reset", "broken pipe", "connectionerror", "timed out", "remote process")
ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
}
"""What `accelerate launch` sets -> the distributed type that asked for it."""
LAUNCHED = {
    "ACCELERATE_MIXED_PRECISION": ("--mixed_precision", "no", "model.dtype"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("--gradient_accumulation_steps", "1", "training.gradient_accumulation"),
}
"""What `accelerate launch` sets -> its flag, the value that asks for nothing, and the field that says it here."""


@dataclass(frozen=True)
class Processes:
    """Those that share every batch, as one of them sees them; by default it is alone.

    Attributes:
        rank: This one's number.
        world: How many there are.
        mean: Averages a tensor over all of them.
    """

    rank: int = 0
    world: int = 1
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @classmethod
    def of(cls, accelerator: Accelerator) -> Processes:
        """As accelerate has joined them."""

        def mean(tensor: Tensor) -> Tensor:
            return accelerator.reduce(tensor, reduction="mean")

        return cls(accelerator.process_index, accelerator.num_processes, mean)

    @property
    def is_main(self) -> bool:
        """Whether this one writes and draws for all."""
        return self.rank == 0


def start(recipe: Recipe) -> Accelerator:
    """Join the other processes, if there are any.

    Raises:
        UserError: If a batch cannot be shared evenly, the launcher asks for an engine that steps by itself, or what
            stands in the environment is no launcher's.
    """
    launcher.check()
    if engines := [name for variable, name in ENGINES.items() if parse_flag_from_env(variable)]:
        raise UserError(
            Problem(
                "distributed_type",
                engines[0],
                "takes the backward pass over, of which a step here has two, with gradients that are kept apart.",
                "Use MULTI_GPU (recipes/accelerate/gpus.yaml); to split the frozen weights add --training.shard true.",
            )
        )
    if problems := [
        Problem(flag, given, f"would not be heeded: {field} of the recipe says it.", f"Leave it out, and set {field}.")
        for variable, (flag, nothing, field) in LAUNCHED.items()
        if (given := os.environ.get(variable, nothing)) not in (nothing, "")
    ]:
        raise UserError(*problems)
    accelerator = Accelerator(
        cpu=recipe.model.device == "cpu" or devices.accelerator() is None,
        log_with=list(recipe.training.log_with) or None,
        project_dir=str(recipe.output),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    world, asked = accelerator.num_processes, recipe.training.gradient_accumulation
    parts = asked if isinstance(asked, int) else 1
    if recipe.training.batch_size % (world * parts):
        raise UserError(
            Problem(
                "training.batch_size",
                recipe.training.batch_size,
                f"cannot be shared evenly by {world} processes"
                + (f" with training.gradient_accumulation {parts}." if parts > 1 else "."),
                f"Use a multiple of {world * parts}.",
            )
        )
    return accelerator


@contextmanager
def lock_output_on_main(accelerator: Accelerator, folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the output folder in the main process; if that fails, it fails in all.

    Raises:
        UserError: As `lock_run` does.
    """
    with ExitStack() as held:
        outcome: list[tuple[Problem, ...]] = [()]
        if accelerator.is_main_process:
            try:
                held.enter_context(lock_run(folder, resume=resume, overwrite=overwrite))
            except UserError as error:
                outcome = [error.problems]
        broadcast_object_list(outcome)
        if outcome[0]:
            raise UserError(*outcome[0])
        yield


@contextmanager
def one_per_cache_first(accelerator: Accelerator, recipe: Recipe) -> Iterator[None]:
    """Of the processes whose cache is the same folder one goes first, the others when it is done.

    So each lock has one holder in the whole job: machines may share a cache, or have their own.

    Args:
        accelerator: The processes.
        recipe: Its cache, and the output, which no other job has at the time.

    Raises:
        UserError: If the cache cannot be written.
    """
    first = accelerator.num_processes == 1 or _is_first(accelerator, recipe.cache.expanduser(), recipe.output)
    if not first:
        accelerator.wait_for_everyone()
    yield
    if first:
        accelerator.wait_for_everyone()


def _is_first(accelerator: Accelerator, cache: Path, output: Path) -> bool:
    """Whether no process of a lower number has the same cache: each leaves a mark there, and looks for the others.

    Marks are named by the output and hold what is new in every job, so that what a killed one left is not taken for one
    of this job's, and goes with it.
    """
    job = [sha256(str(output.absolute()).encode())[:8], uuid.uuid4().hex]
    broadcast_object_list(job)
    name, token = job
    mark = cache / f"{OURS}job.{name}.{accelerator.process_index}"
    with writable(cache, "cache"):
        cache.mkdir(parents=True, exist_ok=True)
        mark.write_text(token)
    try:
        accelerator.wait_for_everyone()
        marks = [other for other in cache.glob(f"{OURS}job.{name}.*") if other.read_text() == token]
        accelerator.wait_for_everyone()
    finally:
        mark.unlink(missing_ok=True)
    return accelerator.process_index == min((int(other.suffix[1:]) for other in marks), default=0)


@contextmanager
def explain_lost_peer(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Say what it means that another process is gone.

    Raises:
        UserError: In place of the error of a broken connection.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not any(sign in str(error).lower() for sign in LOST):
            raise
        raise UserError(
            Problem(
                "processes",
                accelerator.num_processes,
                f"process {accelerator.process_index} lost another one: {str(error).splitlines()[0]}",
                f"The other one's message says why. To go on from the last checkpoint in {folder}, add --resume.",
            )
        ) from error


def raise_together(problems: Sequence[Problem]) -> None:
    """Fail in all processes, if one has problems.

    Raises:
        UserError: With those of the first that has any.
    """
    seen = gather_object([list(problems)])
    if found := next(filter(None, seen), None):
        raise UserError(*found)


def most(accelerator: Accelerator, count: int) -> int:
    """The largest number that any process has."""
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())


def agreed(accelerator: Accelerator, stop: StopSignal) -> int | None:
    """The signal that any process got: all must stop after the same step."""
    if accelerator.num_processes == 1:
        return stop.signum
    seen = accelerator.gather(torch.tensor([stop.signum or 0], device=accelerator.device))
    return int(seen.max()) or None


def require_same_step(accelerator: Accelerator, folder: Path, step: int) -> None:
    """All go on from the same checkpoint.

    Raises:
        UserError: If they see different ones: on machines that do not share the folder.
    """
    if accelerator.num_processes == 1:
        return
    seen = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if min(seen) != max(seen):
        what = f"is not the same folder for all processes: they find the checkpoints of steps {sorted(set(seen))}."
        raise UserError(Problem("output", str(folder), what, "Use a folder that all machines share."))


def all_have(accelerator: Accelerator, thing: object | None) -> bool:
    """Whether no process is without it."""
    if accelerator.num_processes == 1:
        return thing is not None
    seen = accelerator.gather(torch.tensor([thing is not None], device=accelerator.device))
    return bool(seen.all())
