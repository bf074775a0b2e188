"""The noise that a base was trained with: by its configuration, by the keys of its checkpoint, by the recipe."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from erasediff_lora.denoisers import loading
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Model
from erasediff_lora.recipe.tables import PredictionType
from erasediff_lora.storage.files import open_safetensors

log = logging.getLogger(__name__)
KEYS: dict[str, dict[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
"""Keys that trainers leave in single-file checkpoints, where no configuration says it -> what they mean."""
HEADER_KEY = "modelspec.prediction_type"
HEADER = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "sample": "sample"}
"""What a header of the ModelSpec standard says there -> what it means; keys go before it."""
EDM_KEYS = ("edm_mean", "edm_vpred.sigma_max")


def stated(model: Model, source: Path) -> dict[str, Any]:
    """What a single file's keys and header, and before them the recipe, say in place of the scheduler's configuration.

    Args:
        model: Its prediction_type.
        source: Folder or file of the base.

    Raises:
        UserError: For a schedule that is not made of betas.
    """
    found: dict[str, Any] = {}
    if source.is_file():
        keys, header = written(model, source)
        if (predicted := HEADER.get(header.get(HEADER_KEY, ""))) is not None:
            found["prediction_type"] = predicted
            log.info("%s has %s in its header: %s", source.name, HEADER_KEY, predicted)
        for key in [key for key in KEYS if any(_ends_with(name, key) for name in keys)]:
            found |= KEYS[key]
            log.info("%s has the key %s: %s", source.name, key, KEYS[key])
        if edm := [key for key in EDM_KEYS if any(_ends_with(name, key) for name in keys)]:
            raise _no_betas(model, f"EDM (key {edm[0]})")
    return found | ({} if model.prediction_type is None else {"prediction_type": model.prediction_type})


def written(model: Model, source: Path) -> tuple[set[str], Mapping[str, str]]:
    """The names of a single file's tensors, and its header."""
    if source.suffix.lower() == ".safetensors":
        with open_safetensors(source, "model.base") as file:
            return set(file.keys()), file.metadata() or {}
    with loading.readable(model):  # a pickle, which the recipe allows
        stored = torch.load(source, map_location="meta", weights_only=True, mmap=True)
    return set(stored.get("state_dict", stored)), {}


def _ends_with(name: str, key: str) -> bool:
    """Whether a tensor is called so, whatever it stands in."""
    return name == key or name.endswith(f".{key}")


def of_folder(model: Model, source: Path, changes: Mapping[str, Any]) -> DDPMScheduler:
    """The scheduler that noises as the base in a folder was trained.

    Args:
        model: The base, for the message.
        source: The folder.
        changes: From `stated`.

    Raises:
        UserError: If it cannot be read, or is none that this package trains with.
    """
    with loading.readable(model):
        return training_scheduler(model, DDPMScheduler.load_config(source, subfolder="scheduler"), changes)


def training_scheduler(model: Model, config: Mapping[str, Any], changes: Mapping[str, Any]) -> DDPMScheduler:
    """The scheduler that noises as the base was trained.

    Args:
        model: The base, for the message.
        config: Of the base's own scheduler, of whatever class.
        changes: From `stated`.

    Raises:
        UserError: If there are no betas in it, or the network predicts what is not known here.
    """
    name = config.get("_class_name", "DDPMScheduler")
    known = getattr(diffusers, name, DDPMScheduler)
    if not {"beta_start", "trained_betas"} & {*config, *inspect.signature(known).parameters}:
        raise _no_betas(model, name)
    predicted = {**config, **changes}.get("prediction_type", "epsilon")
    if predicted not in get_args(PredictionType) or config.get("use_flow_sigmas"):
        raise UserError(
            Problem(
                "model.base",
                model.base,
                f"its {name} predicts {'flow' if config.get('use_flow_sigmas') else predicted}, which this family does"
                " not train.",
                "If the base was trained otherwise, set model.prediction_type.",
            )
        )
    return DDPMScheduler.from_config(dict(config), clip_sample=False, **changes)


def drawing_scheduler(scheduler: Any, changes: Mapping[str, Any]) -> Any:
    """The scheduler that draws: of the same class, or DDIM where that class does not know the changes."""
    if not changes:
        return scheduler
    known = inspect.signature(type(scheduler)).parameters
    return (type(scheduler) if changes.keys() <= known.keys() else DDIMScheduler).from_config(
        scheduler.config, **changes
    )


def mark(model: Model) -> str:
    """What the recipe says of it, for the base's fingerprint."""
    return "" if model.prediction_type is None else f"-{model.prediction_type}"


def cannot_draw(scheduler: Any) -> bool:
    """Whether its last timestep is noise alone, of which a network that predicts noise says nothing: 0 / 0."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    return alphas is not None and scheduler.config.prediction_type == "epsilon" and float(alphas[-1]) < 1e-7


def _no_betas(model: Model, name: str) -> UserError:
    return UserError(
        Problem(
            "model.base",
            model.base,
            f"its scheduler is {name}, which has no betas: the noise is not that of a DDPM.",
            "Choose a base that was trained with a DDPM-like schedule, or another model.family.",
        )
    )


def require_steps(scheduler: Any, steps: int, field: str = "sampling.steps") -> None:
    """See that a schedule has as many steps as a picture is to be drawn in.

    Args:
        scheduler: Of the base.
        steps: Denoising steps.
        field: What the user calls them, for the message.

    Raises:
        UserError: If it has not.
    """
    if steps > (total := int(scheduler.config.num_train_timesteps)):
        what = f"is more than the {total} steps that the base's schedule has."
        raise UserError(Problem(field, steps, what, f"Set it to {total} or less."))
