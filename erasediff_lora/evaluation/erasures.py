"""An erasure on a loaded base, whose strength can be set: an adapter, or weights that were trained themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from erasediff_lora.adapter import formats
from erasediff_lora.adapter.loading import load
from erasediff_lora.adapter.modules import adaptable, lora_layers
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import open_safetensors
from erasediff_lora.storage.run_folder import WEIGHTS_FILE

ADAPTER = "erasure"


class Erasure(Protocol):
    """What was done to the base."""

    modules: list[str]
    """Paths of the changed modules that an adapter can be put on."""

    def set_strength(self, strength: float) -> None:
        """0 is the base as it was, 1 the erasure as it was trained."""
        ...


class DiffusersLora:
    """An adapter, loaded with diffusers' own loader, as a user of it would.

    Raises:
        UserError: If the file cannot be used, or does not fit the base.
    """

    def __init__(self, denoiser: Denoiser, file: Path) -> None:
        self.pipeline = denoiser.pipeline
        load(self.pipeline, file, name=ADAPTER, base=denoiser.source)
        self.modules = list(lora_layers(denoiser.network))

    def set_strength(self, strength: float) -> None:
        if strength:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters([ADAPTER], [strength])
        else:
            self.pipeline.disable_lora()


class WeightChanges:
    """ΔW of some weights of the network, added in place.

    Raises:
        UserError: If a weight is missing in the base, or of another shape.
    """

    def __init__(self, network: torch.nn.Module, changes: dict[str, Tensor], file: Path) -> None:
        parameters = dict(network.named_parameters())
        for name, change in changes.items():
            there = parameters.get(name)
            if there is None or there.shape != change.shape:
                shape = "missing" if there is None else list(there.shape)
                raise UserError(
                    Problem(
                        "adapter",
                        str(file),
                        f"does not fit the base: {name} is {list(change.shape)} in it, and {shape} in the base.",
                        "Give the base that it was made for.",
                    )
                )
        changed = {name.rpartition(".")[0] for name in changes}
        self.modules = [path for path in adaptable(network) if path in changed]
        self.weights = [(parameters[name], parameters[name].data.clone(), change) for name, change in changes.items()]

    def set_strength(self, strength: float) -> None:
        for parameter, base, change in self.weights:
            parameter.data = base if not strength else base + strength * change.to(base)


def load_erasure(denoiser: Denoiser, file: Path) -> Erasure:
    """Put the erasure in a file on the base, at strength 1.

    Args:
        denoiser: The base.
        file: From `locate`.

    Raises:
        UserError: If the file cannot be used, or does not fit the base.
    """
    if file.name == WEIGHTS_FILE:
        with open_safetensors(file, "adapter") as stored:
            trained = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        base = denoiser.network.state_dict()
        changes = {name: tensor - base[name].cpu() if name in base else tensor for name, tensor in trained.items()}
        moved = {name: change for name, change in changes.items() if bool(change.any())}
        erasure: Erasure = WeightChanges(denoiser.network, moved, file)
    elif hasattr(denoiser.pipeline, "load_lora_weights"):
        erasure = DiffusersLora(denoiser, file)
    else:
        adapter = formats.read(file)
        layers = adapter.component(denoiser.component)
        erasure = WeightChanges(denoiser.network, {f"{n}.weight": layer.delta() for n, layer in layers.items()}, file)
    erasure.set_strength(1)
    return erasure


def locate(path: Path, component: str) -> Path:
    """The file of an erasure: an adapter's, or the network's that a run without adapter wrote.

    Raises:
        UserError: If a folder holds neither.
    """
    weights = path / component / WEIGHTS_FILE
    return weights if weights.is_file() else formats.locate(path)
