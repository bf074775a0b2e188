"""A network out of a single file of its own, as ComfyUI keeps them in `diffusion_models/`, in 16 or 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from erasediff_lora.adapter.checkpoint import Checkpoint
from erasediff_lora.adapter.weight_file import WeightFile
from erasediff_lora.errors import Problem, UserError

_BEFORE = ("model.diffusion_model.", "diffusion_model.", "")


def load(kind: Any, described: Path, component: str, path: Path, dtype: torch.dtype, field: str) -> nn.Module:
    """The network that a folder describes, with the weights of the file, by the authors' names or diffusers'.

    Args:
        kind: Its class in diffusers.
        described: The pipeline's folder.
        component: Of the pipeline.
        path: The file; weights in 8 bits are widened.
        dtype: Of the weights.
        field: The recipe's, for the message.

    Raises:
        UserError: If it is no such file, lacks a weight, or has one of another shape.
    """
    try:
        (file,) = Checkpoint(path).files
    except UserError as error:
        raise UserError(*(Problem(field, str(path), one.what, one.remedy) for one in error.problems)) from None
    with init_empty_weights():
        network: nn.Module = kind.from_config(kind.load_config(described, subfolder=component))
    found = {name: _find(file, component, name, dtype) for name in network.state_dict()}
    lacking = [name for name, tensor in found.items() if tensor is None]
    if lacking:
        what = f"lacks {len(lacking)} of {len(found)} weights of a {kind.__name__}, such as {lacking[0]}."
        raise UserError(Problem(field, str(path), what, "Give a file of the whole network of this family."))
    there = network.state_dict()
    for name, tensor in found.items():
        assert tensor is not None
        if tensor.shape != there[name].shape:
            what = f"holds {name} as {list(tensor.shape)}, which is {list(there[name].shape)} in {described}."
            raise UserError(Problem(field, str(path), what, "Give a file of a network of the base's own size."))
    network.load_state_dict({name: tensor for name, tensor in found.items() if tensor is not None}, assign=True)
    return network.eval()


def _find(file: WeightFile, component: str, name: str, dtype: torch.dtype) -> Tensor | None:
    """A parameter by its name in diffusers; None: it is not there."""
    path = f"{component}.{name}"
    slot = file.slot(path.removesuffix(".weight"))
    if slot is not None:
        return file.weight(slot).to(dtype)
    names = (name, name.rpartition(".")[2])  # no layer's: padding tokens of Z-Image, pos_embed of Stable Diffusion 3
    key = next((key for before in _BEFORE for one in names if (key := before + one) in file.tensors), None)
    return None if key is None else file.read(key).to(dtype)
