"""What other erasers publish: whole pipelines, single files, the network alone, or some of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erasediff_lora import denoisers
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.denoisers.loading import readable, undescribed
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import PICKLE_SUFFIXES, open_safetensors
from erasediff_lora.storage.run_folder import WEIGHTS_FILE

FIELD = "model"
ADAPTER = re.compile(r"lora|lokr|hada_|oft_|\.diff(_b)?$|\.[wb]_norm$|dora_scale|emb_params|^clip_[lg]$")
"""What stands in the names of adapters' tensors, and never in those of a model's."""
LDM = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")
"""How names begin in a single file of the authors' own layout."""
AUTOENCODER = "first_stage_model."
NESTED = ("state_dict", "model_state_dict", "unet", "module", "model")
"""Under which keys of a pickled dictionary erasers keep their weights."""
PREFIXES = ("unet.", "transformer.", "module.", "model.", "")


def at_hand(recipe: Recipe, path: Path) -> Path:
    """The path, or where the model of that hub id was downloaded to.

    Raises:
        UserError: If there is neither.
    """
    model = recipe.model.model_copy(update={"base": path.as_posix(), "revision": None, "variant": None, "config": None})
    if path.exists() or path.parent.exists() or not model.is_hub_id:  # a typo in a path asks no other machine
        return path
    try:
        return denoisers.load(model).source
    except UserError as error:
        raise _about(path, error) from error


def is_pipeline(path: Path) -> bool:
    """Whether a folder holds a whole pipeline as diffusers saves it."""
    return (path / "model_index.json").is_file()


def network_file(path: Path) -> Path | None:
    """The weights in a folder of the network alone, as `save_pretrained` of the network writes it; None if it is none.

    Raises:
        UserError: If they lie in several files.
    """
    if not (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return None
    if (file := path / WEIGHTS_FILE).is_file():
        return file
    if any(path.glob("diffusion_pytorch_model-*.safetensors")):
        what = "holds a network in several files, which is read only with the rest of its pipeline."
        raise UserError(Problem(FIELD, str(path), what, "Give the whole folder of the pipeline."))
    return None


def is_model(path: Path) -> bool:
    """Whether it holds weights of a model, and no adapter.

    Raises:
        UserError: If it is a file that cannot be read.
    """
    if path.is_dir():
        return is_pipeline(path)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    with open_safetensors(path, "adapter") as file:
        names = list(file.keys())
    return not any(ADAPTER.search(name) for name in names)


def weights_of(denoiser: Denoiser, path: Path) -> dict[str, Tensor]:
    """What the other model has in the place of the base's weights: part.name -> tensor.

    Args:
        denoiser: The base.
        path: Folder of a pipeline, single file, or file of weights of the network with diffusers' names.

    Raises:
        UserError: If it cannot be read, is a pickle that the recipe does not trust, or has a weight that the base has
            not.
    """
    model: Any = denoiser.model  # type: ignore[attr-defined]
    if getattr(model, "quantize", None):
        what = "leaves the base no whole weights, in whose place others could be put."
        raise UserError(Problem("model.quantize", model.quantize, what, "Omit it."))
    if is_pipeline(path):
        return _of_pipeline(denoiser, path, config=None)
    stored = _Stored(denoiser, path)
    if not any(name.startswith(LDM) for name in stored.names):
        return _of_names(denoiser, path, stored)
    described = getattr(denoiser, "described", None)
    if any(name.startswith(AUTOENCODER) for name in stored.names):
        return _of_pipeline(denoiser, path, config=described)
    return _of_network(denoiser, path, described)


def parameters_of(denoiser: Denoiser) -> dict[str, nn.Parameter]:
    """part.name -> parameter of everything in the base that has weights; names as they are without adapters."""
    return {
        f"{part}.{name.replace('.base_layer.', '.')}": parameter
        for part, module in modules_of(denoiser).items()
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if ".lora_" not in name
    }


def modules_of(denoiser: Denoiser) -> dict[str, nn.Module]:
    """Part -> module of everything in the base that has weights, the network first."""
    parts = denoiser.pipeline.components
    found = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    return {denoiser.component: denoiser.network} | found


def _of_pipeline(denoiser: Denoiser, path: Path, config: Path | None) -> dict[str, Tensor]:
    """The weights of a whole pipeline. The base's tokenizer and schedule are kept, so that both draw alike."""
    model: Any = denoiser.model  # type: ignore[attr-defined]
    own = {"base": str(path), "config": config, "revision": None, "variant": None, "quantize": None}
    try:
        other = denoisers.load(model.model_copy(update=own))
        modules = modules_of(other)
    except UserError as error:
        raise _about(path, error) from error
    return {f"{part}.{name}": one.data for part in modules for name, one in modules[part].named_parameters()}


def _about(path: Path, error: UserError) -> UserError:
    """What was said of a base is said of the other model."""
    return UserError(*(replace(one, field=FIELD, value=str(path)) for one in error.problems))


def _of_network(denoiser: Denoiser, path: Path, config: Path | None) -> dict[str, Tensor]:
    """The network of a single file that holds nothing else."""
    model: Any = denoiser.model  # type: ignore[attr-defined]
    if config is None:
        raise undescribed(path)
    try:
        with readable(model):
            network = type(denoiser.network).from_single_file(
                str(path),
                config=str(config),
                subfolder=denoiser.component,
                local_files_only=True,
                torch_dtype=denoiser.dtype,
            )
    except UserError as error:
        raise _about(path, error) from error
    return {f"{denoiser.component}.{name}": one.data for name, one in network.named_parameters()}


class _Stored:
    """The tensors of a file, read when they are asked for.

    Raises:
        UserError: If it is a pickle and the recipe does not say that it may be opened, or holds no tensors.
    """

    def __init__(self, denoiser: Denoiser, path: Path) -> None:
        self.path = path
        self._loaded: dict[str, Tensor] | None = None
        if path.suffix.lower() in PICKLE_SUFFIXES:
            self._loaded = _unpickled(denoiser, path)
            self.shapes = {name: list(tensor.shape) for name, tensor in self._loaded.items()}
        else:
            with open_safetensors(path, FIELD) as file:
                self.shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    @property
    def names(self) -> list[str]:
        """Of the tensors that are weights: older files number their positions too."""
        return [name for name in self.shapes if not name.endswith("position_ids")]

    def tensors(self) -> dict[str, Tensor]:
        """All of those."""
        if self._loaded is not None:
            return {name: self._loaded[name] for name in self.names}
        with open_safetensors(self.path, FIELD) as file:
            return {name: file.get_tensor(name) for name in self.names}


def _unpickled(denoiser: Denoiser, path: Path) -> dict[str, Tensor]:
    model: Any = denoiser.model  # type: ignore[attr-defined]
    if not model.allow_pickle:
        what = "is a pickle, which can run code when opened."
        raise UserError(Problem(FIELD, str(path), what, "If you trust it, add --model.allow_pickle true."))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        what = f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}."
        raise UserError(Problem(FIELD, str(path), what, "Convert it to safetensors.")) from error
    for key in NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    tensors = loaded.items() if isinstance(loaded, Mapping) else ()
    found = {str(name): tensor for name, tensor in tensors if isinstance(tensor, Tensor)}
    if not found:
        raise UserError(Problem(FIELD, str(path), "holds no weights by name.", "Convert it to safetensors."))
    return found


def _of_names(denoiser: Denoiser, path: Path, stored: _Stored) -> dict[str, Tensor]:
    """Weights with diffusers' names; some of them will do, as several erasers save only what they changed.

    Raises:
        UserError: If one is no weight of the base.
    """
    known = _spellings(denoiser)
    tables = {name for module in modules_of(denoiser).values() for name, _ in module.named_buffers()}  # no weights
    places = {name: _place(name, known) for name in stored.names if name not in tables}
    if unknown := [name for name, place in places.items() if place is None]:
        what = (
            f"has {len(unknown)} of {len(places)} tensors that are no weights of {Path(denoiser.source).name}, the"
            f" first {unknown[0]} {stored.shapes[unknown[0]]}."
        )
        raise UserError(Problem(FIELD, str(path), what, "Give a recipe with the base that it was made from."))
    return {place: tensor for name, tensor in stored.tensors().items() if (place := places.get(name)) is not None}


def _spellings(denoiser: Denoiser) -> dict[str, str]:
    """How the base's weights may be called in a file -> part.name; earlier versions put CLIP below `text_model`."""
    found: dict[str, str] = {}
    for place in parameters_of(denoiser):
        part, _, name = place.partition(".")
        found[place] = place
        if part == denoiser.component:
            found[name] = place
        elif part == "text_encoder":
            found[f"text_model.{name}"] = place
        found.setdefault(f"{part}.text_model.{name}", place)
    return found


def _place(name: str, known: Mapping[str, str]) -> str | None:
    bare = (name.removeprefix(prefix) for prefix in ("", *PREFIXES))
    return next((known[one] for one in bare if one in known), None)
