"""What a run says while it goes on: the bar, the log, and accelerate's trackers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from accelerate import Accelerator

from erasediff_lora.machine.devices import peak_memory
from erasediff_lora.machine.progress import tqdm, whole
from erasediff_lora.objectives import Direction
from erasediff_lora.storage.run_folder import LOG_FILE, JsonLog
from erasediff_lora.training import trackers
from erasediff_lora.training.setup import Run

BAR = {"L_r": "retain_loss", "L_f": "forget_loss", "lambda": "lambda"}
"""Label -> metric of those that stand beside the bar."""


class Progress:
    """Reports the steps of a run; iterating over it counts those that are left, from `run.start`."""

    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        self.log = JsonLog(run.recipe.output / LOG_FILE, run.start) if run.processes.is_main else None
        steps = run.recipe.steps
        whole.enter("steps")
        self.work = whole.stages.get("steps", 0.0) / steps
        whole.add(self.work * run.start, is_done=False)
        self.bar = tqdm(
            range(run.start, steps),
            initial=run.start,
            total=steps,
            desc="erase",
            disable=not run.processes.is_main,
        )

    def __iter__(self) -> Iterator[int]:
        yield from self.bar

    def report(self, done: int, direction: Direction, seconds: float) -> None:
        """Say what a step was like and how long it took.

        Raises:
            UserError: If the disk is full.
        """
        run = self.run
        whole.add(self.work)
        values = direction.metrics | {
            "learning_rate": run.optimizer.param_groups[0]["lr"],
            "samples_per_second": 2 * run.recipe.training.batch_size / seconds,
            "peak_memory_bytes": peak_memory(run.denoiser.device),
        }
        values |= run.hooks.metrics()
        values = {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
        if self.log is not None:
            self.log.write({"step": done} | values)
        self.accelerator.log({name: value for name, value in values.items() if value is not None}, step=done)
        shown = {label: values[name] for label, name in BAR.items() if values.get(name) is not None}
        self.bar.set_postfix({label: f"{value:.3f}" for label, value in shown.items()}, refresh=False)

    def tell_trackers(self, done: int) -> None:
        """Give the trackers what hooks found and drew at this step."""
        found, sheets = self.run.hooks.findings(done), self.run.hooks.sheets(done)
        if self.run.processes.is_main:
            trackers.tell(self.accelerator, done, found, sheets)

    def sync(self) -> None:
        """Have the log on the disk."""
        if self.log is not None:
            self.log.sync()

    def close(self) -> None:
        """Close the log and the trackers."""
        if self.log is not None:
            self.log.close()
        self.accelerator.end_training()
