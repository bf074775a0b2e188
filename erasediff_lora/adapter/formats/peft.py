"""peft's `adapter_model.safetensors` and `adapter_config.json`, one pair a model."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from erasediff_lora import families
from erasediff_lora.adapter.formats import reading
from erasediff_lora.adapter.formats.base import (
    Published,
    open_adapter,
    peft_config,
    peft_tensors,
)
from erasediff_lora.adapter.formats.diffusers import header_config
from erasediff_lora.adapter.formats.peft_config import TYPES
from erasediff_lora.adapter.formats.reading import COMPONENT, NOTHING, Asked, Part
from erasediff_lora.adapter.scaling import beside_factors
from erasediff_lora.adapter.weights import LoraAdapter, StoredAdapter, unusable
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.storage.files import save_safetensors, write_text
from erasediff_lora.storage.inside import read_plain
from erasediff_lora.storage.tensors import TensorFile

FILE = "adapter_model.safetensors"
FOLDER = "peft"

CONFIG = "adapter_config.json"
BESIDE = (CONFIG,)
PREFIX = "base_model.model."
_USAGE = '**peft**: `PeftModel.from_pretrained({component}, "{repo}", subfolder="{folder}")`.'


def owns(keys: Collection[str]) -> bool:
    """Whether every tensor stands behind peft's prefix."""
    return all(key.startswith(PREFIX) for key in keys)


def read(stored: TensorFile, asked: Asked = NOTHING) -> StoredAdapter:
    """Read the file and the configuration beside it, which holds alpha; and those of text encoders in folders."""
    others = [
        part_of(open_adapter(file), file.parent.name)
        for file in sorted(stored.path.parent.glob(f"*/{FILE}"))
        if file.parent.name in families.components()
    ]
    return reading.read([part_of(stored, stored.metadata.get(COMPONENT)), *others], asked)


def part_of(stored: TensorFile, component: str | None) -> Part:
    """A file with its configuration, for a component if that is known."""
    if component is not None and component not in families.components():
        raise unusable(stored.path, f"is for {component!r:.80}, which is no part of a pipeline.")
    path = stored.path.with_name(CONFIG)
    return Part(stored, component, {component or "": _config(stored)}, PREFIX, path if path.exists() else None)


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
        layers, biases = adapter.component(component), adapter.biases_of(component)
        mine = file if component == main else file.parent / component / FILE
        header = adapter.header | {"format": "pt", COMPONENT: component} | adapter.provenance.header()
        save_safetensors(peft_tensors(layers, PREFIX, biases), mine, header)
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": adapter.provenance.base_model,
            "bias": "none",
        }
        write_text(
            mine.with_name(CONFIG), json.dumps(config | peft_config(layers, biases), indent=2, sort_keys=True) + "\n"
        )
        written += [mine, mine.with_name(CONFIG)]
    return written


def usage(published: Published) -> str:
    """For the component that predicts."""
    component = published.adapter.network or published.adapter.components[0]
    folder = published.file.removesuffix(f"/{FILE}")
    return _USAGE.format(component=component, repo=published.repo, folder=folder)


def _config(stored: TensorFile) -> dict[str, Any]:
    """The configuration; none beside a file of another name, as some programs make of a folder."""
    file = stored.path.with_name(CONFIG)
    if not file.exists() and stored.path.name != FILE:
        return header_config(stored).get("", {})
    try:
        config = json.loads(read_plain(file))
        kind = config["peft_type"]
    except FileNotFoundError:
        raise UserError(
            Problem("adapter", str(file), "is missing; it holds alpha.", "Give a folder with both of peft's files.")
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            Problem("adapter", str(file), f"is no LoRA configuration of peft: {error}.", "Export it again.")
        ) from None
    if kind not in TYPES:
        raise unusable(
            file,
            f"has peft_type = {kind!r:.40}, which is none of {', '.join(TYPES)}.",
            "Merge it with peft, and make a LoRA of the difference with extract.",
        )
    return dict(config)
