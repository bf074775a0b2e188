"""peft's `adapter_model.safetensors` and `adapter_config.json`, one pair a model."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from erasediff_lora import families
from erasediff_lora.adapter.formats.base import (
    Published,
    open_adapter,
    other_header,
    peft_config,
    peft_layers,
    peft_tensors,
    refuse_unknown,
)
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.scaling import beside_factors
from erasediff_lora.adapter.weights import LoraAdapter, StoredAdapter, StoredLayer, checked
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import save_safetensors, write_text
from erasediff_lora.storage.tensors import TensorFile

FILE = "adapter_model.safetensors"
FOLDER = "peft"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
COMPONENT = "erasediff_component"
_USAGE = '**peft**: `PeftModel.from_pretrained({component}, "{repo}", subfolder="{folder}")`.'


def owns(keys: Collection[str]) -> bool:
    """Whether every tensor stands behind peft's prefix."""
    return all(key.startswith(PREFIX) for key in keys)


def read(stored: TensorFile) -> StoredAdapter:
    """Read the file and the configuration beside it, which holds alpha; and those of text encoders in folders."""
    adapter = _read_one(stored)
    layers = dict(adapter.layers)
    for file in sorted(stored.path.parent.glob(f"*/{FILE}")):
        if file.parent.name in families.components():
            other = open_adapter(file)
            refuse_unknown({key for key in other.tensors if not key.startswith(PREFIX)}, file)
            layers |= _read_one(other).layers
    return StoredAdapter(dict(sorted(layers.items())), adapter.provenance, adapter.header)


def _read_one(stored: TensorFile) -> StoredAdapter:
    config = _config(stored.path.with_name(CONFIG))
    mine = {key.removeprefix(PREFIX): tensor for key, tensor in stored.tensors.items()}
    mine = {key.removeprefix("text_model."): tensor for key, tensor in mine.items()}
    layers = peft_layers(mine, config, stored.path, StoredLayer)
    header = other_header(stored.metadata)
    component = header.pop(COMPONENT, None) or families.network_of(layers) or "text_encoder"
    named = {f"{component}.{path}": layer for path, layer in layers.items()}
    return StoredAdapter(checked(named, stored.path), Provenance.from_header(stored.metadata), header)


def suits(adapter: LoraAdapter) -> bool:
    """Always."""
    return True


def target(adapter: LoraAdapter, output: Path) -> Path:
    """The name that peft looks for; `output` must be a folder, since there are two files.

    Raises:
        UserError: If it is not.
    """
    if output.suffix == ".safetensors":
        raise UserError(
            Problem("output", str(output), "is a file, but peft takes a folder of two files.", "Give a folder.")
        )
    return output / FILE


def write(adapter: LoraAdapter, file: Path) -> list[Path]:
    """Write both files, and each further component in a folder of its name."""
    adapter = beside_factors(adapter)
    written = []
    main = adapter.network or adapter.components[0]
    for component in sorted(adapter.components, key=lambda name: name != main):
        layers = adapter.component(component)
        mine = file if component == main else file.parent / component / FILE
        header = adapter.header | {"format": "pt", COMPONENT: component} | adapter.provenance.header()
        save_safetensors(peft_tensors(layers, PREFIX), mine, header)
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": adapter.provenance.base_model,
            "bias": "none",
        }
        write_text(mine.with_name(CONFIG), json.dumps(config | peft_config(layers), indent=2, sort_keys=True) + "\n")
        written += [mine, mine.with_name(CONFIG)]
    return written


def usage(published: Published) -> str:
    """For the component that predicts."""
    component = published.adapter.network or published.adapter.components[0]
    folder = published.file.removesuffix(f"/{FILE}")
    return _USAGE.format(component=component, repo=published.repo, folder=folder)


def _config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["peft_type"] != "LORA":
            raise ValueError(f"peft_type is {config['peft_type']}, not LORA")
    except FileNotFoundError:
        raise UserError(
            Problem("adapter", str(file), "is missing; it holds alpha.", "Give a folder with both of peft's files.")
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            Problem("adapter", str(file), f"is no LoRA configuration of peft: {error}.", "Export it again.")
        ) from None
    return dict(config)
