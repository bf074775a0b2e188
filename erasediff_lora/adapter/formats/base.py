"""What a file format of adapters must do, and what several formats share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from erasediff_lora.adapter.provenance import PREFIX
from erasediff_lora.adapter.weights import L, LoraAdapter, LoraLayer, StoredAdapter, T, unusable
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.registry import FORMATS
from erasediff_lora.storage.tensors import TensorFile, open_tensors

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
OWN_HEADER = ("format", "lora_adapter_metadata", "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
LARGEST_ALPHA = 1e9
OTHER_FILES = frozenset(
    f".{end}"
    for end in (
        *("ckpt", "pt", "pth", "bin", "pkl", "pickle", "sft", "safetensor", "safetensors", "npz", "gguf", "onnx"),
        *("msgpack", "zip", "json", "yaml", "yml", "txt"),
    )
)
"""Ends of the names of files; what else follows a dot may well be a folder, such as 'v1.5'."""
_PATTERN = re.compile(r"[\w.^$\\*\-]{1,300}")
"""Of module names in a LoraConfig: without groups, whose nesting can take exponential time."""


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
    """A module or object each, registered in `registry.FORMATS`; safetensors files all."""

    FILE: str | None
    """The name that its file has in a folder; None: any."""

    FOLDER: str
    """Where its files lie in a folder that holds all formats; '' for the folder itself."""

    def owns(self, keys: Collection[str]) -> bool:
        """Whether a file with these tensors is of this format."""
        ...

    def read(self, stored: TensorFile) -> StoredAdapter:
        """The adapter in the file, and in what belongs to it.

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
        fits = tensor.count == 1 if name.endswith(".alpha") else tensor.ndim > 0
        if not fits or not tensor.is_float:
            shape = list(tensor.shape)
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


def peft_layers(
    tensors: Mapping[str, T], config: Mapping[str, Any], source: Path, layer: Callable[[T, T, float, bool, T | None], L]
) -> dict[str, L]:
    """Layers by module path, from tensors with peft keys and a LoraConfig's fields.

    Args:
        tensors: In a file, or in memory.
        config: A LoraConfig's fields; without alpha it is the rank.
        source: Where they come from, for the message.
        layer: Makes a layer of A, B, alpha, whether it is rsLoRA, and the magnitude: StoredLayer or LoraLayer.

    Raises:
        UserError: If a key is none of LoRA's, or a factor has no partner.
    """
    paths = sorted({key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)})
    refuse_unknown(tensors.keys() - {path + end for path in paths for end in (DOWN, UP, MAGNITUDE)}, source)
    alphas = _require_numbers(config, source)
    layers = {}
    for path in paths:
        down, up = tensors[path + DOWN], partner(tensors, path + UP, source)
        alpha = float(alphas.get(matching(alphas, path), config.get("lora_alpha", down.shape[0])))
        layers[path] = layer(down, up, alpha, bool(config.get("use_rslora", False)), tensors.get(path + MAGNITUDE))
    return layers


def matching(patterns: Collection[str], path: str) -> str:
    """The first pattern that the path ends in, after a dot or whole, as peft looks for it; else the path itself."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)), path)


def _require_numbers(config: Mapping[str, Any], source: Path) -> Mapping[str, Any]:
    """The alphas by pattern, if they and alpha are numbers, and no pattern could keep a regex engine busy for hours.

    Raises:
        UserError: If they are not.
    """
    alphas = config.get("alpha_pattern") or {}
    by_pattern = alphas.items() if isinstance(alphas, dict) else [("alpha_pattern", None)]
    for name, value in [("lora_alpha", config.get("lora_alpha", 1)), *by_pattern]:
        is_number = isinstance(value, int | float) and abs(value) < LARGEST_ALPHA
        if not (is_number and _PATTERN.fullmatch(name) and name.count("*") <= 3):
            raise unusable(
                source,
                f"gives {name!r:.80} the alpha {value!r:.80}, which is no number below {LARGEST_ALPHA:g}, "
                "or no pattern of module names.",
            )
    return dict(by_pattern)


def peft_tensors(layers: Mapping[str, LoraLayer], prefix: str) -> dict[str, Tensor]:
    """The inverse of `peft_layers`."""
    tensors = {}
    for path, layer in layers.items():
        tensors[prefix + path + DOWN], tensors[prefix + path + UP] = layer.down, layer.up
        if layer.magnitude is not None:
            tensors[prefix + path + MAGNITUDE] = layer.magnitude
    return tensors


def peft_config(layers: Mapping[str, LoraLayer]) -> dict[str, Any]:
    """The least of a LoraConfig that restores the layers: loaders refuse fields that their peft does not know."""
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    config: dict[str, Any] = {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "target_modules": sorted(layers),
        "use_rslora": any(layer.rslora for layer in layers.values()),
        "use_dora": any(layer.magnitude is not None for layer in layers.values()),
    }
    ranks = {path: layer.rank for path, layer in layers.items() if layer.rank != rank}
    alphas = {path: _whole(layer.alpha) for path, layer in layers.items() if layer.alpha != alpha}
    return config | ({"rank_pattern": ranks} if ranks else {}) | ({"alpha_pattern": alphas} if alphas else {})


def partner(tensors: Mapping[str, T], key: str, source: Path) -> T:
    """The other factor of a pair.

    Raises:
        UserError: If it is missing.
    """
    if key not in tensors:
        raise unusable(source, f"lacks the tensor {key}.")
    return tensors[key]


def refuse_unknown(keys: Collection[str], source: Path) -> None:
    """Stop at tensors that would be lost.

    Raises:
        UserError: If there are any, naming the first.
    """
    if keys:
        shown = ", ".join(sorted(keys)[:5]) + (", …" if len(keys) > 5 else "")
        *others, last = FORMATS
        raise UserError(
            Problem(
                "adapter",
                str(source),
                f"has {len(keys)} tensors of an unknown layout: {shown}.",
                f"Known are LoRA and DoRA in the formats {', '.join(others)} and {last}.",
            )
        )


def other_header(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a header holds beside what every writer makes anew."""
    return {key: value for key, value in metadata.items() if not key.startswith(PREFIX) and key not in OWN_HEADER}


def _whole(number: float) -> float:
    """2 instead of 2.0, as peft writes it."""
    return int(number) if number == int(number) else number
