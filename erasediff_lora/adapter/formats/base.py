"""What a file format of adapters must do, and what several formats share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from erasediff_lora.adapter.formats.reading import Asked
from erasediff_lora.adapter.formats.refusals import ADAPTERS, kind_of
from erasediff_lora.adapter.weights import LoraAdapter, LoraLayer, StoredAdapter, unusable
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.tensors import TensorFile, open_tensors

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP, MAGNITUDE, UP_BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".lora_B.bias"
NO_BIASES: Mapping[str, Tensor] = MappingProxyType({})
OTHER_FILES = frozenset(
    f".{end}"
    for end in (
        *("ckpt", "pt", "pth", "bin", "pkl", "pickle", "sft", "safetensor", "safetensors", "npz", "gguf", "onnx"),
        *("msgpack", "zip", "json", "yaml", "yml", "txt"),
    )
)
"""Ends of the names of files; what else follows a dot may well be a folder, such as 'v1.5'."""


@dataclass(frozen=True)
class Published:
    """An adapter's file on a model hub, for `Format.usage`.

    Attributes:
        adapter: What is in it.
        repo: 'user/name'.
        file: The file's path in the repository.
        base: Hub id of the base.
    """

    adapter: LoraAdapter
    repo: str
    file: str
    base: str


class Format(Protocol):
    """A module or object each, registered in `registry.FORMATS`; safetensors files all.

    One that writes further files in the folder of the first names them in a `BESIDE`.
    """

    FILE: str | None
    """The name that its file has in a folder; None: any."""

    FOLDER: str
    """Where its files lie in a folder that holds all formats; '' for the folder itself."""

    def owns(self, keys: Collection[str]) -> bool:
        """Whether a file with these tensors is of this format."""
        ...

    def read(self, stored: TensorFile, asked: Asked) -> StoredAdapter:
        """The adapter in the file, and in what belongs to it, as the user asked for it.

        Raises:
            UserError: If keys are left over or the configuration is missing.
        """
        ...

    def suits(self, adapter: LoraAdapter) -> bool:
        """Whether the format has names for the adapter's weights."""
        ...

    def target(self, adapter: LoraAdapter, output: Path) -> Path:
        """The weights file that `write` makes for an output that is a folder or a file name."""
        ...

    def write(self, adapter: LoraAdapter, file: Path) -> list[Path]:
        """Write the adapter; returns the files made, the weights first."""
        ...

    def usage(self, published: Published) -> str:
        """How programs load the file, as Markdown; '' if none does."""
        ...


def open_adapter(file: Path) -> TensorFile:
    """An adapter's file, whose weights are tables of floats, and whose alphas are one number each.

    Raises:
        UserError: If there is none, it is damaged or unsafe, or a tensor is neither.
    """
    stored = open_tensors(file, "adapter")
    for name, tensor in stored.tensors.items():
        if not (tensor.is_number if name.endswith("alpha") else tensor.ndim > 0 and tensor.is_float):
            shape = list(tensor.shape)
            if kind := kind_of(name):
                raise unusable(file, f"has a tensor {name} {shape}, which is {kind}.", ADAPTERS)
            raise unusable(file, f"has a tensor {name} of shape {shape} in {tensor.dtype_name}, which is no weight.")
    return stored


def as_file(output: Path, default: str) -> Path:
    """`output` itself if it names a safetensors file, or the default name in that folder."""
    return output if output.suffix == ".safetensors" else output / default


def require_folder_or_safetensors(output: Path) -> None:
    """Stop where a file of another kind is asked for, which would become a folder.

    Raises:
        UserError: If the name ends as one, or such a file is there.
    """
    if output.suffix == ".safetensors" or output.is_dir():
        return
    if output.suffix.lower() in OTHER_FILES or output.exists():
        raise UserError(
            Problem(
                "output",
                str(output),
                "names a file that is no safetensors file, as adapters are written.",
                f"Write {output.with_suffix('.safetensors').name}, or the name of a folder.",
            )
        )


def peft_tensors(
    layers: Mapping[str, LoraLayer], prefix: str, biases: Mapping[str, Tensor] = NO_BIASES
) -> dict[str, Tensor]:
    """Tensors by peft's names, with a prefix, from layers and biases by module path.

    If one has a bias, all have: peft's `lora_bias` is for all of them.

    Raises:
        UserError: If a layer is a DoRA by input, or a DoRA with a bias, which peft does not have.
    """
    tensors = {}
    for path, layer in layers.items():
        if layer.by_input:
            raise UserError(
                Problem(
                    "adapter",
                    prefix + path,
                    "is a DoRA with a magnitude for each input; peft and diffusers know one for each output only.",
                    "Write it as kohya, or make it a LoRA with convert --as lora --rank RANK --base BASE.",
                )
            )
        tensors[prefix + path + DOWN], tensors[prefix + path + UP] = layer.down, layer.up
        if layer.magnitude is not None:
            tensors[prefix + path + MAGNITUDE] = layer.magnitude
        if biases:
            tensors[prefix + path + UP_BIAS] = _bias(layer, biases.get(path), prefix + path)
    return tensors


def _bias(layer: LoraLayer, bias: Tensor | None, name: str) -> Tensor:
    """The bias of B that adds this to the bias of the base."""
    if bias is None:
        return layer.up.new_zeros(layer.shape[0])
    if layer.magnitude is not None:
        raise UserError(
            Problem(
                "adapter",
                name,
                "is a DoRA with a bias, which peft and diffusers do not have.",
                "Write it as kohya, or make it a LoRA with convert --as lora --rank RANK --base BASE.",
            )
        )
    return bias / layer.scale if layer.scale else bias


def peft_config(layers: Mapping[str, LoraLayer], biases: Collection[str] = ()) -> dict[str, Any]:
    """The least of a LoraConfig that restores the layers: loaders refuse fields that their peft does not know."""
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    config: dict[str, Any] = {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "target_modules": sorted(layers),
        "use_rslora": any(layer.rslora for layer in layers.values()),
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
        **({"lora_bias": True} if biases else {}),
    }
    ranks = {path: layer.rank for path, layer in layers.items() if layer.rank != rank}
    alphas = {path: _whole(layer.alpha) for path, layer in layers.items() if layer.alpha != alpha}
    return config | ({"rank_pattern": ranks} if ranks else {}) | ({"alpha_pattern": alphas} if alphas else {})


def _whole(number: float) -> float:
    """2 instead of 2.0, as peft writes it."""
    return int(number) if number == int(number) else number
