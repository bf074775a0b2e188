"""Processes on this machine: one for each card, or one at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.sweeps.launchers.base import Job

POLL = 0.2
"""Seconds."""


class Processes:
    """Takes no options. With several cards each run has one, and the next run the card that is free."""

    def __init__(self, at_a_time: int | None, options: Mapping[str, Any]) -> None:
        if options:
            what = "are not expected: processes on this machine have no options."
            raise UserError(Problem("--launch", ", ".join(options), what, "Omit it, or choose another --launcher."))
        self.at_a_time = at_a_time

    def launch(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """See `Launcher`."""
        cards = _cards()
        slots: list[dict[str, str]] = [{"CUDA_VISIBLE_DEVICES": card} for card in cards] if len(cards) > 1 else [{}]
        count = self.at_a_time or len(slots)
        free = [slots[number % len(slots)] for number in range(count)][::-1]
        waiting = list(jobs)[::-1]
        running: list[tuple[Job, subprocess.Popen[bytes], dict[str, str]]] = []
        with ExitStack() as logs:
            try:
                while waiting or running:
                    while waiting and free:
                        job, slot = waiting.pop(), free.pop()
                        output = logs.enter_context(job.log.open("wb"))
                        process = subprocess.Popen(
                            job.command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | slot
                        )
                        running.append((job, process, slot))
                    ended = [one for one in running if one[1].poll() is not None]
                    for one in ended:
                        running.remove(one)
                        free.append(one[2])
                        yield one[0], one[1].returncode
                    if not ended:
                        time.sleep(POLL)
            finally:
                for _, process, _ in running:  # they save a checkpoint
                    process.send_signal(signal.SIGTERM)
                for _, process, _ in running:
                    process.wait()


def _cards() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the cards of this machine."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
