"""An erasure on a loaded base, whose strength can be set: an adapter, or weights that were trained themselves."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.loading import load
from erasediff_lora.adapter.modules import adaptable, lora_layers
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.other_models import is_model, is_pipeline, network_file, parameters_of, weights_of
from erasediff_lora.storage.files import PICKLE_SUFFIXES, all_in, fingerprint
from erasediff_lora.storage.run_folder import WEIGHTS_FILE

log = logging.getLogger(__name__)

ADAPTER = "erasure"
MOST_MERGED = 64 * 2**20
"""Bytes of weights that a second copy is held of, merged: no more than a plan may be wrong by."""


class Erasure(Protocol):
    """What was done to the base."""

    is_adapter: bool
    """Whether it is one that diffusers holds beside others."""

    modules: list[str]
    """Paths of the changed modules that an adapter can be put on."""

    def set_strength(self, strength: float) -> None:
        """0 is the base as it was, 1 the erasure as it was trained."""
        ...

    def merge(self, strength: float) -> None:
        """The same in as few operations as can be, for whoever only looks on: to the last bits alike."""
        self.set_strength(strength)


class DiffusersLora(Erasure):
    """An adapter, loaded with diffusers' own loader, as a user of it would.

    Raises:
        UserError: If the file cannot be used, or does not fit the base.
    """

    is_adapter = True

    def __init__(self, denoiser: Denoiser, file: Path) -> None:
        self.pipeline = denoiser.pipeline
        load(self.pipeline, file, name=ADAPTER, base=denoiser.weights)
        self.modules = list(lora_layers(denoiser.network))
        parts = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]
        self._layers = [layer for part in parts for layer in lora_layers(part).values()]
        self._weights = [weight for layer in self._layers for weight in layer.base_layer.parameters()]
        self._base = [weight.data for weight in self._weights]
        self._merged: tuple[float, list[Tensor]] = 0.0, self._base
        # In 16 bits the sum would be rounded, and what is quantised has no sum.
        self._may_merge = all(weight.dtype == torch.float32 for weight in self._weights)
        self._may_merge &= sum(weight.nbytes for weight in self._weights) <= MOST_MERGED

    def set_strength(self, strength: float) -> None:
        self._put(self._base)
        if strength:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters([ADAPTER], [strength])
        else:
            self.pipeline.disable_lora()

    def merge(self, strength: float) -> None:
        self.set_strength(strength)
        if not strength or not self._may_merge:
            return
        if self._merged[0] != strength:
            self._put([weight.clone() for weight in self._base])
            for layer in self._layers:
                layer.merge(adapter_names=[ADAPTER])
                layer.merged_adapters.clear()  # or peft would subtract it again
            self._merged = strength, [weight.data for weight in self._weights]
        self._put(self._merged[1])
        self.pipeline.disable_lora()

    def _put(self, found: Sequence[Tensor]) -> None:
        for weight, data in zip(self._weights, found, strict=True):
            weight.data = data


class WeightChanges(Erasure):
    """Other weights in the place of some of the base's.

    Args:
        denoiser: The base.
        tuned: part.name -> the weight; those that are the base's are left out.
        file: Where they are from, for messages.

    Raises:
        UserError: If a weight is missing in the base, or of another shape.
    """

    is_adapter = False

    def __init__(self, denoiser: Denoiser, tuned: Mapping[str, Tensor], file: Path) -> None:
        parameters = parameters_of(denoiser)
        self.weights: list[tuple[torch.nn.Parameter, Tensor, Tensor]] = []
        changed: set[str] = set()
        for place, weight in tuned.items():
            there = parameters.get(place)
            if there is None or there.shape != weight.shape:
                shape = "missing" if there is None else list(there.shape)
                name = place.removeprefix(f"{denoiser.component}.")
                what = f"does not fit the base: {name} is {list(weight.shape)} in it, and {shape} in the base."
                raise UserError(Problem("adapter", str(file), what, "Give the base that it was made for."))
            own = weight.to(there.data)
            if not _is_same(own, there.data):
                self.weights.append((there, there.data.clone(), own))
                changed.add(place.rpartition(".")[0])
        if not changed:
            log.warning("warning: %s is the base itself: none of its weights differs", file)
        paths = list(adaptable(denoiser.network))
        own_modules = [path for path in paths if f"{denoiser.component}.{path}" in changed]
        self.modules = own_modules or [path for path in paths if _attends(denoiser, path)]  # of text encoders alone

    def set_strength(self, strength: float) -> None:
        for parameter, base, tuned in self.weights:
            parameter.data = tuned if strength == 1 else base + strength * (tuned - base) if strength else base


def _is_same(weight: Tensor, base: Tensor) -> bool:
    """Whether a weight is the base's, or what is left of it in a file of 16 bits."""
    if torch.equal(weight, base):
        return True
    halves = [(weight.to(dtype), base.to(dtype)) for dtype in (torch.float16, torch.bfloat16)]
    return any(torch.equal(own, of_base) and torch.equal(own.to(weight), weight) for own, of_base in halves)


def _attends(denoiser: Denoiser, path: str) -> bool:
    """Whether it is a module of attention, as the family's preset has them."""
    return any(re.fullmatch(pattern, path) for pattern in denoiser.target_presets["attention"])


def load_erasure(denoiser: Denoiser, file: Path) -> Erasure:
    """Put the erasure in a file on the base, at strength 1.

    Args:
        denoiser: The base.
        file: From `locate`.

    Raises:
        UserError: If the file cannot be used, or does not fit the base.
    """
    if is_model(file):
        erasure: Erasure = WeightChanges(denoiser, weights_of(denoiser, file), file)
    elif hasattr(denoiser.pipeline, "load_lora_weights"):
        erasure = DiffusersLora(denoiser, file)
    else:
        erasure = WeightChanges(denoiser, _added(denoiser, file), file)
    erasure.set_strength(1)
    return erasure


def _added(denoiser: Denoiser, file: Path) -> dict[str, Tensor]:
    """The network's weights with an adapter added."""
    parameters, found = parameters_of(denoiser), {}
    for name, layer in formats.read(file).component(denoiser.component).items():
        place, delta = f"{denoiser.component}.{name}.weight", layer.delta()
        there = parameters.get(place)
        found[place] = delta if there is None or there.shape != delta.shape else there.data + delta.to(there.data)
    return found


def locate(path: Path, component: str) -> Path:
    """Where an erasure lies: an adapter, the network that a run without adapter wrote, or another eraser's model.

    Raises:
        UserError: If a folder holds neither.
    """
    if is_pipeline(path):
        return path
    weights = path / component / WEIGHTS_FILE
    return weights if weights.is_file() else network_file(path) or formats.locate(path)


def digest(path: Path) -> str:
    """SHA-256 of a file, or over all of a pipeline's weights and configurations, names included."""
    if path.is_dir():
        kept = {".safetensors", ".json", *PICKLE_SUFFIXES}
        return fingerprint(sorted(file for file in path.rglob("*") if file.suffix in kept and file.is_file()), path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in all_in(path))
