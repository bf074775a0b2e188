"""What a run is made of besides its recipe: weights, pictures, programs. A resumed run is held against it."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from erasediff_lora import __version__
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Recipe

log = logging.getLogger(__name__)
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "bitsandbytes")
"""Those whose arithmetic a step goes through."""
REMEDY = "Put it back, or start a new run in another --output."


@dataclass(frozen=True)
class Origin:
    """What must be the same for a resumed run to end as one that nobody stopped.

    Attributes:
        base: Fingerprint of the base.
        pictures: Kind of set -> hash of its captions and pictures.
        circumstances: What may move the last bits: versions, device, threads, processes.
        steps: Of the whole run, at most.
    """

    base: str
    pictures: Mapping[str, str] = field(default_factory=dict)
    circumstances: Mapping[str, str] = field(default_factory=dict)
    steps: int = 0

    @classmethod
    def read(cls, trainer: Mapping[str, Any]) -> Origin | None:
        """That of a checkpoint; None if it does not say, or not in these words."""
        stored: Any = trainer.get("origin")
        try:
            found = cls(**stored)
        except TypeError:
            return None
        return found if isinstance(found.pictures, dict) and isinstance(found.circumstances, dict) else None

    def state(self) -> dict[str, Any]:
        """What `read` reads."""
        return asdict(self)


def circumstances(device: torch.device, processes: int) -> dict[str, str]:
    """What may move the last bits of this process's arithmetic."""
    found = {"erasediff-lora": __version__, "Python": platform.python_version(), "processor": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found | {"device": kind, "threads": str(torch.get_num_threads()), "processes": str(processes)}


def require_same_base(recipe: Recipe, fingerprint: str, before: Origin) -> None:
    """Refuse to go on with other weights.

    Raises:
        UserError: If they are not those that the run was begun with.
    """
    if fingerprint != before.base:
        what = "its weights or its configuration are not those that the run was started with."
        raise UserError(Problem("model.base", recipe.model.base, what, REMEDY))


def require_same_pictures(recipe: Recipe, pictures: Mapping[str, str], before: Origin) -> None:
    """Refuse to go on with other pictures or captions.

    Raises:
        UserError: Naming the sets that have changed.
    """
    changed = [kind for kind, found in pictures.items() if found != before.pictures.get(kind, found)]
    problems = []
    for kind in changed:
        images = getattr(recipe, kind).images
        where = None if images is None else str(images.folder or images.dataset)
        field = f"{kind}.images" if images is not None else kind
        what = "its pictures or captions are not those that the run was started with."
        problems.append(Problem(field, where, what, REMEDY.replace("it", "them")))
    if problems:
        raise UserError(*problems)


def say_what_differs(now: Origin, before: Origin) -> None:
    """Tell of circumstances that have changed: the run goes on, and may end with other last bits."""
    changed = [
        f"{name} was {before.circumstances[name]}, is {value}"
        for name, value in now.circumstances.items()
        if before.circumstances.get(name, value) != value
    ]
    if changed:
        log.warning("resumed elsewhere, so that the last bits may differ: %s", "; ".join(changed))


def require_steps(recipe: Recipe, taken: int, folder: Path) -> None:
    """Refuse to end before where the run is already.

    Raises:
        UserError: If it has taken more steps than it is to take.
    """
    if taken > recipe.steps:
        field = "training.max_steps" if recipe.training.steps == "auto" else "training.steps"
        what = f"the run in {folder} has taken {taken} already."
        raise UserError(Problem(field, recipe.steps, what, f"Set it to {taken} or more, or choose another --output."))
