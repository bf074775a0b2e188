"""diffusers' `pytorch_lora_weights.safetensors`: peft keys behind the component's name, alpha in the header.

ComfyUI and diffusers before 0.34 read no header, so what is written here has scale 1 with and without it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora import families
from erasediff_lora.adapter.formats import reading
from erasediff_lora.adapter.formats.base import (
    DOWN,
    MAGNITUDE,
    UP,
    UP_BIAS,
    Published,
    as_file,
    peft_config,
    peft_tensors,
)
from erasediff_lora.adapter.formats.reading import NOTHING, Asked, Part
from erasediff_lora.adapter.scaling import alphas_header, in_factors
from erasediff_lora.adapter.weights import LoraAdapter, StoredAdapter, unusable
from erasediff_lora.storage.files import save_safetensors
from erasediff_lora.storage.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

FILE = "pytorch_lora_weights.safetensors"
FOLDER = ""
CONFIG = "lora_adapter_metadata"
_OLD_TEXT_PREFIX = "text_model."  # CLIPTextModel before transformers 5
_USAGE = """\
**diffusers**

```python
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("{base}")
pipe.load_lora_weights("{repo}", weight_name="{file}", adapter_name="{name}")
pipe.set_adapters(["{name}"], [1.0])  # strength; other LoRAs can be active beside it
pipe.fuse_lora()                     # optional: into the weights
```"""


def owns(keys: Collection[str]) -> bool:
    """Whether every tensor is a factor of one of a pipeline's components."""
    known = families.components()
    return all(key.partition(".")[0] in known and key.endswith((DOWN, UP, MAGNITUDE, UP_BIAS)) for key in keys)


def read(stored: TensorFile, asked: Asked = NOTHING) -> StoredAdapter:
    """Read the file. Without `lora_adapter_metadata`, alpha is the rank, as for diffusers."""
    return reading.read([Part(stored, config=header_config(stored))], asked)


def header_config(stored: TensorFile) -> dict[str, dict[str, Any]]:
    """LoraConfigs by component, from the header; '' where its fields have no component before them.

    Raises:
        UserError: If it is unreadable.
    """
    try:
        config = json.loads(stored.metadata.get(CONFIG, "{}"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise unusable(stored.path, f"has an unreadable {CONFIG} header: {error}.") from None
    known, found = families.components(), dict[str, dict[str, Any]]()
    for key, value in config.items():
        component, _, field = key.partition(".")
        place, name = (component, field) if component in known else ("", key)
        found.setdefault(place, {})[name] = value
    return found


def suits(adapter: LoraAdapter) -> bool:
    """Always."""
    return True


def target(adapter: LoraAdapter, output: Path) -> Path:
    """The file name that diffusers looks for in a folder."""
    return as_file(output, FILE)


def write(adapter: LoraAdapter, file: Path) -> list[Path]:
    """Write the file, with scale 1 in every layer."""
    adapter = in_factors(adapter)
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for component in adapter.components:
        layers, biases = adapter.component(component), adapter.biases_of(component)
        config |= {f"{component}.{name}": value for name, value in peft_config(layers, biases).items()}
        named = {_with_text_prefix(path): layer for path, layer in layers.items()}
        tensors |= peft_tensors(named, f"{component}.", {_with_text_prefix(path): b for path, b in biases.items()})
    header = {"format": "pt", CONFIG: json.dumps(config, sort_keys=True)} | alphas_header(adapter)
    save_safetensors(tensors, file, adapter.header | header | adapter.provenance.header())
    return [file]


def _with_text_prefix(path: str) -> str:
    """The path in CLIP of a module that transformers 5 finds with and without the prefix, and others only with it.

    The configuration has the paths without it, which peft finds as the ends of longer ones.
    """
    return _OLD_TEXT_PREFIX + path if path.startswith("encoder.layers.") else path


def usage(published: Published) -> str:
    """For the pipelines that diffusers has."""
    found = families.of_architecture(published.adapter.architecture)
    if found is None or not found[0].in_diffusers:
        return ""
    return _USAGE.format(
        pipeline=found[0].pipeline,
        base=published.base,
        repo=published.repo,
        file=published.file,
        name="erase" if published.adapter.provenance.is_erasure else "adapter",
    )
