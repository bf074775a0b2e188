"""The file of kohya's sd-scripts, which A1111, Forge, ComfyUI and InvokeAI load too.

Its keys are `lora_unet_<path with underscores>.lora_down.weight`, `.lora_up.weight` and `.alpha`, with scale =
alpha / rank. Paths are diffusers' for Stable Diffusion 1.x and 2.x, and LDM's for XL: see each family's KohyaNames.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from erasediff_lora import __version__, families
from erasediff_lora.adapter.formats import reading
from erasediff_lora.adapter.formats.base import Published, as_file
from erasediff_lora.adapter.formats.reading import NOTHING, Asked, Part
from erasediff_lora.adapter.scaling import beside_factors
from erasediff_lora.adapter.stacked import biases_in_native_names, in_native_names
from erasediff_lora.adapter.weights import LoraAdapter, StoredAdapter
from erasediff_lora.families import Architecture, Family, KohyaNames
from erasediff_lora.storage.files import save_safetensors
from erasediff_lora.storage.tensors import TensorFile

if TYPE_CHECKING:
    from torch import Tensor

FILE = None
FOLDER = ""
DOWN, UP, ALPHA, MAGNITUDE, BIAS = ".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale", ".diff_b"
_USAGE = """\
**ComfyUI**: put `{file}` into `models/loras` and load it with *{node}* at strength 1.

**A1111, Forge**: put `{file}` into `models/Lora` and write `<lora:{name}:1>` in the prompt.

**InvokeAI, kohya's sd-scripts**: import `{file}`."""


def owns(keys: Collection[str]) -> bool:
    """Whether the tensors are named kohya's way."""
    roots = tuple(root for names in _all_names() for root in names.roots)
    return all(key.startswith(roots) for key in keys)


def read(stored: TensorFile, asked: Asked = NOTHING) -> StoredAdapter:
    """Read the file. A missing alpha means the rank, as for kohya."""
    return reading.read([Part(stored)], asked)


def suits(adapter: LoraAdapter) -> bool:
    """Where kohya has names for the family's components."""
    found = families.of_architecture(adapter.architecture)
    kohya = None if found is None else found[0].kohya
    return kohya is not None and kohya.prefixes.keys() >= set(adapter.components)


def target(adapter: LoraAdapter, output: Path) -> Path:
    """A name that says what is erased, or the one that another trainer gave: the programs list adapters by it."""
    given = "" if adapter.provenance.is_erasure else adapter.header.get("ss_output_name", "")
    name = re.sub(r"[^\w.-]+", "-", given)[:80].strip("-.")
    return as_file(output, f"{name or adapter.provenance.title}.safetensors")


def write(adapter: LoraAdapter, file: Path) -> list[Path]:
    """Write the file. alpha is float32, and takes up rsLoRA's different scale."""
    adapter = beside_factors(adapter)
    import torch

    family, names, architecture = _named(adapter)
    layers, biases = adapter.layers, adapter.biases
    if family.native is not None:
        layers, biases = in_native_names(layers, family.native), biases_in_native_names(biases, family.native)
    tensors = {}
    for module, layer in layers.items():
        key = names.name(module)
        tensors[key + DOWN], tensors[key + UP] = layer.down, layer.up
        tensors[key + ALPHA] = torch.tensor(layer.scale * layer.rank if layer.rslora else layer.alpha)
        if layer.magnitude is not None:
            axis = (1, -1) if layer.by_input else (-1, 1)
            tensors[key + MAGNITUDE] = layer.magnitude.reshape(*axis, *[1] * (layer.down.ndim - 2))
        if module in biases:
            tensors[key + BIAS] = biases[module]
    notes = _training_notes(adapter, names, architecture, file)
    save_safetensors(tensors, file, _header(adapter, names, architecture, notes, _hashes(tensors, notes)))
    return [file]


def usage(published: Published) -> str:
    """For the programs that read kohya's files."""
    adapter = published.adapter
    return _USAGE.format(
        file=published.file,
        name=published.file.removesuffix(".safetensors"),
        node="Load LoRA (Model Only)" if adapter.components == [adapter.network] else "Load LoRA",
    )


def _all_names() -> list[KohyaNames]:
    return [family.kohya for family in families.asked() if family.kohya is not None]


def _named(adapter: LoraAdapter) -> tuple[Family, KohyaNames, Architecture]:
    found = families.of_architecture(adapter.architecture)
    if found is None or found[0].kohya is None:
        raise ValueError(f"kohya has no names for {adapter.architecture}")
    return found[0], found[0].kohya, found[1]


def _training_notes(adapter: LoraAdapter, names: KohyaNames, architecture: Architecture, file: Path) -> dict[str, str]:
    """Kohya's `ss_` fields."""
    base = adapter.provenance.base_model
    version = f"{architecture.kohya}{'_v' if names.marks_v and _predicts_v(adapter) else ''}"
    alphas = {layer.alpha for layer in adapter.layers.values()}
    return {
        "ss_base_model_version": version,
        "ss_v2": str(version.startswith("sd_v2")),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_output_name": file.stem,
        **({"ss_sd_model_name": base} if base else {}),
    } | {key: value for key, value in adapter.header.items() if key.startswith("ss_")}


def _header(
    adapter: LoraAdapter, names: KohyaNames, architecture: Architecture, notes: dict[str, str], hashes: tuple[str, str]
) -> dict[str, str]:
    """Kohya's `ss_` and `sshs_` fields, and the modelspec standard's."""
    provenance = adapter.provenance
    side = provenance.resolution or architecture.resolution
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture.id}/lora",
        "implementation": names.implementation,
        "implementation_version": f"erasediff-lora/{__version__}",
        "title": provenance.title,
        "resolution": f"{side}x{side}",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "prediction_type": "v" if _predicts_v(adapter) else provenance.prediction_type or "epsilon",
    }
    if provenance.is_erasure:
        concepts = ", ".join(provenance.concepts)
        spec["description"] = f"Erases {concepts} from {provenance.base_model or 'the base model'}."
        spec["usage_hint"] = "Load it at strength 1; no trigger word."
    content, legacy = hashes
    foreign = {key: value for key, value in adapter.header.items() if not key.startswith("sshs_")}
    return (
        {"format": "pt"}
        | {f"modelspec.{name}": value for name, value in spec.items()}
        | foreign
        | notes
        | {"modelspec.hash_sha256": f"0x{content}", "sshs_model_hash": content, "sshs_legacy_hash": legacy}
        | provenance.header()
    )


def _predicts_v(adapter: LoraAdapter) -> bool:
    return adapter.provenance.prediction_type == "v_prediction"


def _hashes(tensors: dict[str, Tensor], notes: dict[str, str]) -> tuple[str, str]:
    """SHA-256 of the file's tensor bytes, and A1111's old hash: 64 KiB from 1 MiB on, of a file with `ss_` only."""
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, notes)
    start = 8 + int.from_bytes(data[:8], "little")
    return hashlib.sha256(data[start:]).hexdigest(), hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
