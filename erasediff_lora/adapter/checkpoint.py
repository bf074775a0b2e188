"""A base model's weights on disk, and how to tell one base from another."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erasediff_lora import families
from erasediff_lora.adapter.weight_file import WeightFile
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.families import Slot, others
from erasediff_lora.families.layouts.text_encoders import OPEN_CLIP_H
from erasediff_lora.storage.inside import read_plain
from erasediff_lora.storage.paths import existing

SAMPLE = 64
_ADAPTER = re.compile(r"lora_(A|B|down|up|mid)\b|\.hada_w|\.lokr_w|\.diff(_b)?$|\.[wb]_norm$|_lora\.(down|up)")
"""What stands in the names of adapters' tensors."""

_PACKED = (".absmax", ".quant_map", ".SCB", ".qweight", ".weight_packed")
"""Ends of what stands beside weights that bitsandbytes (in 4 and 8 bits), GPTQ, AWQ and others have packed."""


class Checkpoint:
    """A base: a diffusers folder, an LDM single file, or a bare UNet file with diffusers' names.

    Raises:
        UserError: If the path is none of these, or its weights are pickled.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = existing(path, "model")
        if self.path.is_dir():
            self.files = [
                WeightFile(file, component)
                for component in families.components()
                for file in sorted((self.path / component).glob("*.safetensors"))
            ]
            for file in self.files:
                _require_whole(file)
            for folder in {file.path.parent for file in self.files}:
                _require_shards(folder)
            if not any(file.component in families.networks() for file in self.files):
                raise UserError(
                    Problem(
                        "model",
                        str(path),
                        "is no diffusers folder with safetensors weights: it has no unet/*.safetensors, and no"
                        " transformer/*.safetensors.",
                        "Give the folder that save_pretrained wrote, or a single-file checkpoint.",
                    )
                )
        else:
            file = WeightFile(self.path)
            file.component = families.network_in(file.tensors)
            _require_whole(file)
            networks = families.networks()
            if not any(name.partition(".")[0] in networks for name in file.slots):
                raise _unknown_layout(file)
            self.files = [file]

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @cached_property
    def main_files(self) -> list[WeightFile]:
        """The files that make up one model: the whole-precision ones where variants lie beside them."""
        if not self.is_folder:
            return self.files
        chosen = []
        for component in families.components():
            files = [file for file in self.files if file.component == component]
            first = min((_variant(file.path) for file in files), default="")  # '' sorts first
            chosen += [file for file in files if _variant(file.path) == first]
        return chosen

    @cached_property
    def architectures(self) -> tuple[str, ...]:
        """Modelspec ids of the architectures that it can be: by the pipeline of the folder, header, and weights."""
        metadata = {} if self.is_folder else dict(self.files[0].metadata)
        index = _json(self.path / "model_index.json") if self.is_folder else {}
        family = families.of_pipeline(str(index.get("_class_name")))
        of = families.components() if family is None else families.networks()
        shapes = {
            name: file.shape(slot)
            for file in self.main_files
            for name, slot in file.slots.items()
            if name.partition(".")[0] in of
        }
        try:
            found = families.recognise(shapes, metadata, () if family is None else families.identifiers(family))
        except families.Unfit:
            return ()
        return self._by_configuration(found.candidates) if self.is_folder else found.candidates

    def _by_configuration(self, candidates: tuple[str, ...]) -> tuple[str, ...]:
        """Of Stable Diffusion's versions, the one that the folder's configurations leave, as it does for training."""
        context = _json(self.path / "unet/config.json").get("cross_attention_dim")
        is_second = context == OPEN_CLIP_H.width
        predicts_v = _json(self.path / "scheduler/scheduler_config.json").get("prediction_type") == "v_prediction"
        left = [name for name in candidates if ("-v2-" in name) == is_second]
        by_v = [name for name in left if not is_second or name.endswith("-v") == predicts_v]
        return tuple(by_v or left or candidates) if isinstance(context, int) else candidates

    def find(self, name: str) -> tuple[WeightFile, Slot] | None:
        """Where a weight or a bias lies, by the adapter's name."""
        return next(((file, slot) for file in self.main_files if (slot := file.slot(name)) is not None), None)


def fingerprint(checkpoint: Checkpoint) -> str:
    """Identify a base by its UNet or transformer, whatever file it lies in.

    SHA-256, in hexadecimal, over the name, the shape and the first and last 64 values, as float16, of every weight of
    it. It is the same for a diffusers folder and a single file, in float32 and in float16. Rounding to bfloat16
    changes it, and so do fine-tuning and merging.
    """
    weights, networks = {}, families.networks()
    for file in checkpoint.main_files:
        for name, slot in file.slots.items():
            component, _, path = name.partition(".")
            if component in networks:
                weights[path] = (file.shape(slot), file.ends(slot, SAMPLE))
    return _digest(weights)


def fingerprint_of_network(network: nn.Module) -> str:
    """The same of a network in memory, in float32 or float16; adapters in it are left out."""
    weights = {}
    for key, tensor in network.state_dict().items():
        if key.endswith(".weight") and ".lora_" not in key:
            name = key.removesuffix(".weight").removesuffix(".base_layer")
            flat = tensor.detach().flatten()
            weights[name] = (tuple(tensor.shape), [flat[:SAMPLE].cpu(), flat[-SAMPLE:].cpu()])
    return _digest(weights)


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint of a base on disk; None where it can't be read, as with pickled weights."""
    try:
        return fingerprint(Checkpoint(path))
    except UserError:
        return None


def _digest(weights: Mapping[str, tuple[tuple[int, ...], list[Tensor]]]) -> str:
    digest = hashlib.sha256()
    for name, (shape, ends) in sorted(weights.items()):
        digest.update(f"{name} {list(shape)}".encode())
        for values in ends:
            digest.update(values.to(torch.float16).numpy().tobytes())
    return digest.hexdigest()


def _unknown_layout(file: WeightFile) -> UserError:
    """The complaint about a file in which no network is known: how many tensors, the first, and what it looks like."""
    what = f"has an unknown layout: none of its {len(file.tensors)} tensors is of a network that is known here"
    if file.tensors:
        first = next(iter(file.tensors))
        what += f", the first {first} {list(file.tensors[first].shape)}"
    like = others.by_names(file.tensors, {}) or others.by_header(file.metadata)
    if any(_ADAPTER.search(key) for key in file.tensors):
        remedy = "It looks like an adapter: give the model first, and adapters behind it."
    elif like is not None:
        remedy = f"It looks like {like}, which is none of the known families: {_known()}."
    else:
        remedy = f"Known are single files, diffusers folders and files of the network of {_known()}."
    return UserError(Problem("model", str(file.path), what + ".", remedy))


def _require_whole(file: WeightFile) -> None:
    """Stop at weights that are packed, as by bitsandbytes or GPTQ.

    Raises:
        UserError: If the file has any.
    """
    if packed := next((key for key in file.tensors if key.endswith(_PACKED)), None):
        what = f"is quantised: {packed.rpartition('.')[0]} is packed."
        raise UserError(Problem("model", str(file.path), what, "Take the model before it was quantised."))


def _require_shards(folder: Path) -> None:
    """Stop at weights in several files of which some are missing, as after a download that broke off.

    Raises:
        UserError: If they are.
    """
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        table = _json(index).get("weight_map")
        names = {name for name in table.values() if isinstance(name, str)} if isinstance(table, dict) else set()
        missing = sorted(name for name in names if not (folder / name).exists())
        if 0 < len(missing) < len(names):
            what = f"names {missing[0]}, which is not there: {len(missing)} of {len(names)} files are missing."
            raise UserError(Problem("model", str(index), what, "Download the model again."))


def _known() -> str:
    """The families of which there are pipelines to be had."""
    return ", ".join(name for name in families.FAMILIES if families.FAMILIES[name].in_diffusers)


def _json(file: Path) -> dict[str, Any]:
    """A table in a model's folder; empty if there is none that can be read."""
    try:
        found = json.loads(read_plain(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _variant(path: Path) -> str:
    """'fp16' of diffusion_pytorch_model.fp16-00001-of-00002.safetensors, '' without one."""
    return path.stem.split("-")[0].partition(".")[2]
