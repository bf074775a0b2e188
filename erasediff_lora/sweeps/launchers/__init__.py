"""What starts the runs of a sweep: a file here and a line in the registry; the scheduling is theirs."""

from erasediff_lora.sweeps.launchers.base import Job, Launcher

__all__ = ["Job", "Launcher"]
