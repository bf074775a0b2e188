"""Slurm through submitit: a job array. Options are those of its executors, such as `slurm_partition=gpu`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from erasediff_lora.sweeps.launchers.base import Job, not_installed, refused, run_job

DEFAULTS = {"timeout_min": 24 * 60, "gpus_per_node": 1}


class Submitit:
    """`cluster=local` runs the array on this machine instead, to try it."""

    def __init__(self, at_a_time: int | None, options: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise not_installed("submitit") from None
        given = dict(options)
        self.folder = given.pop("folder", "submitit")
        self.cluster = given.pop("cluster", None)
        self.submitit = submitit
        self.parameters = DEFAULTS | given
        if at_a_time is not None:
            self.parameters["slurm_array_parallelism"] = at_a_time

    def launch(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """See `Launcher`. Its own logs lie beside those of the runs."""
        try:
            executor = self.submitit.AutoExecutor(folder=jobs[0].log.parent / self.folder, cluster=self.cluster)
            executor.update_parameters(**self.parameters)
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            raise refused("submitit", error) from None
        submitted = dict(zip(executor.map_array(run_job, list(jobs)), jobs, strict=True))
        waiting = list(submitted)
        try:
            for ended in self.submitit.helpers.as_completed(list(waiting)):
                waiting.remove(ended)
                yield submitted[ended], _status(ended)
        finally:
            for job in waiting:
                job.cancel()


def _status(ended: Any) -> int:
    """Of the run; 1 where the scheduler ended it."""
    failure = ended.exception()
    return int(ended.result()) if failure is None else 1
