"""diffusers' `pytorch_lora_weights.safetensors`: peft keys behind the component's name, alpha in the header."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from erasediff_lora.adapter.formats.base import (
    COMPONENTS,
    DOWN,
    MAGNITUDE,
    UP,
    as_file,
    other_header,
    peft_config,
    peft_layers,
    peft_tensors,
    refuse_unknown,
)
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.weights import LoraAdapter, LoraLayer, checked, unusable
from erasediff_lora.storage.files import save_safetensors

FILE = "pytorch_lora_weights.safetensors"
CONFIG = "lora_adapter_metadata"
_OLD_TEXT_PREFIX = "text_model."  # CLIPTextModel before transformers 5


def owns(keys: Collection[str]) -> bool:
    """Whether every tensor is a factor of one of a pipeline's components."""
    return all(key.partition(".")[0] in COMPONENTS and key.endswith((DOWN, UP, MAGNITUDE)) for key in keys)


def read(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> LoraAdapter:
    """Read the file. Without `lora_adapter_metadata`, alpha is the rank, as for diffusers."""
    try:
        config = json.loads(metadata.get(CONFIG, "{}"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise unusable(file, f"has an unreadable {CONFIG} header: {error}.") from None
    layers: dict[str, LoraLayer] = {}
    for component in COMPONENTS:
        prefix = component + "."
        mine = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        mine = {key.removeprefix(_OLD_TEXT_PREFIX): tensor for key, tensor in mine.items()}
        fields = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
        layers |= {prefix + path: layer for path, layer in peft_layers(mine, fields, file).items()}
    refuse_unknown({key for key in tensors if key.partition(".")[0] not in COMPONENTS}, file)
    return LoraAdapter(checked(layers, str(file)), Provenance.from_header(metadata), other_header(metadata))


def suits(adapter: LoraAdapter) -> bool:
    """Always."""
    return True


def target(adapter: LoraAdapter, output: Path) -> Path:
    """The file name that diffusers looks for in a folder."""
    return as_file(output, FILE)


def write(adapter: LoraAdapter, file: Path) -> list[Path]:
    """Write the file."""
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for component in adapter.components:
        layers = adapter.component(component)
        tensors |= peft_tensors(layers, f"{component}.")
        config |= {f"{component}.{name}": value for name, value in peft_config(layers).items()}
    header = {"format": "pt", CONFIG: json.dumps(config, sort_keys=True)}
    save_safetensors(tensors, file, adapter.header | header | adapter.provenance.header())
    return [file]
