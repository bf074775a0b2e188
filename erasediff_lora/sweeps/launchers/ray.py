"""A Ray cluster. Options are those of a remote function, such as `num_gpus=1`, and `address`, where the cluster is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from erasediff_lora.sweeps.launchers.base import Job, not_installed, refused, run_job


class Ray:
    """Ray finds room for the runs; every machine has to see the sweep's folder, and have the package."""

    def __init__(self, at_a_time: int | None, options: Mapping[str, Any]) -> None:
        try:
            import ray
        except ImportError:
            raise not_installed("ray") from None
        given = dict(options)
        self.ray = ray
        self.address = given.pop("address", None)
        self.options = given
        self.at_a_time = at_a_time

    def launch(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        """See `Launcher`."""
        if not self.ray.is_initialized():
            self.ray.init(address=self.address, log_to_driver=False)
        try:
            run = self.ray.remote(run_job).options(**self.options)
        except (TypeError, ValueError) as error:
            raise refused("ray", error) from None
        waiting = list(jobs)[::-1]
        running: dict[Any, Job] = {}
        try:
            while waiting or running:
                while waiting and (self.at_a_time is None or len(running) < self.at_a_time):
                    job = waiting.pop()
                    running[run.remote(job)] = job
                ended, _ = self.ray.wait(list(running))
                for handle in ended:
                    yield running.pop(handle), self._status(handle)
        finally:
            for handle in running:
                self.ray.cancel(handle)

    def _status(self, handle: Any) -> int:
        try:
            return int(self.ray.get(handle))
        except self.ray.exceptions.RayError:
            return 1
