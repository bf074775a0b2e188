"""Text encoders and autoencoders out of files of their own, as ComfyUI keeps them in `text_encoders/` and `vae/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from erasediff_lora.adapter.weight_file import WeightFile
from erasediff_lora.errors import Problem, UserError

VAE, PROJECTION = "vae", "text_projection.weight"


def load(name: str, described: Path, path: Path, dtype: torch.dtype, inside: str = "") -> nn.Module:
    """A part of the pipeline that a folder describes, with the weights of a file; those in 8 bits are widened.

    Stable Diffusion 3 takes what CLIP-L says of a prompt before its projection, which files have and pipelines apply.

    Args:
        name: Of the part, such as 'text_encoder_2'.
        described: The pipeline's folder.
        path: The file.
        dtype: Of the weights.
        inside: What stands before their names in a file of a whole model.

    Raises:
        UserError: If the folder has no such part, or the file lacks its weights.
    """
    field = "model.base" if inside else f"model.parts.{name}"
    index = json.loads((described / "model_index.json").read_text(encoding="utf-8"))
    library, class_name = index.get(name) or ("", "")
    kind: Any = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), class_name or "", None)
    if kind is None or not (described / name).is_dir():
        what = f"is described nowhere: {described} has no {name}."
        raise UserError(Problem(field, str(path), what, "Put the folder with its configuration there."))
    with init_empty_weights():
        if library == "diffusers":
            part: nn.Module = kind.from_config(kind.load_config(described, subfolder=name))
        else:
            part = kind(kind.config_class.from_pretrained(described / name))
    file = WeightFile(path, name)
    wanted = part.state_dict()
    found = {key: _find(file, key, like, inside) for key, like in wanted.items()}
    if name == "text_encoder" and PROJECTION in wanted:
        found[PROJECTION] = torch.eye(len(wanted[PROJECTION]))
    lacking = [key for key, tensor in found.items() if tensor is None]
    if lacking and name == VAE and hasattr(kind, "from_single_file"):  # by the authors' names
        options: dict[str, Any] = {"config": str(described), "subfolder": name, "local_files_only": True}
        vae: nn.Module = kind.from_single_file(str(path), torch_dtype=dtype, **options)
        return vae.eval().requires_grad_(False)
    if lacking:
        what = f"lacks {len(lacking)} of {len(found)} weights of a {class_name} of this size, such as {lacking[0]}."
        raise UserError(Problem(field, str(path), what, f"Give a file of the base's own {name}."))
    state = {key: one.to(dtype) if one.is_floating_point() else one for key, one in found.items() if one is not None}
    part.load_state_dict(state, assign=True)
    return part.eval().requires_grad_(False)


def tokenizer(name: str, described: Path, folder: Path) -> Any:
    """A tokenizer from a folder of its own, of the kind that another folder says.

    Raises:
        UserError: If none is there.
    """
    index = json.loads((described / "model_index.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, (index.get(name) or ("", ""))[1] or "AutoTokenizer")
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        what = f"holds no tokenizer: {' '.join(str(error).split())[:200]}"
        remedy = "Give the folder with its tokenizer.json."
        raise UserError(Problem(f"model.parts.{name}", str(folder), what, remedy)) from error


def _find(file: WeightFile, key: str, like: Tensor, inside: str) -> Tensor | None:
    """A weight by its name in transformers; None: it is not there in this shape."""
    names = (
        *(key, f"text_model.{key}", f"model.{key}"),
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
        key.replace("encoder.embed_tokens.", "shared."),
        key.replace("lm_head.", "model.embed_tokens."),  # tied, and so written once
    )
    if not like.is_floating_point():
        return like  # a counter, of no use
    full = (inside + name for name in names)
    there = (name for name in full if name in file.tensors and file.tensors[name].shape == tuple(like.shape))
    found = next(there, None)
    return None if found is None else file.read(found)
