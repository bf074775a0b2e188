"""The file of kohya's sd-scripts, which A1111, Forge, ComfyUI and InvokeAI load too.

Its keys are `lora_unet_<path with underscores>.lora_down.weight`, `.lora_up.weight` and `.alpha`, with scale =
alpha / rank. Paths are diffusers' for Stable Diffusion 1.x and 2.x, and LDM's for XL.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from erasediff_lora import __version__
from erasediff_lora.adapter.formats.base import as_file, other_header, partner, refuse_unknown
from erasediff_lora.adapter.ldm import SDXL
from erasediff_lora.adapter.provenance import Provenance
from erasediff_lora.adapter.weights import LoraAdapter, LoraLayer, checked
from erasediff_lora.storage.files import save_safetensors

log = logging.getLogger(__name__)
DOWN, UP, ALPHA, MAGNITUDE = ".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale"
TEXT = "text_model_"
PREFIXES = {
    "lora_unet_": "unet",
    f"lora_te_{TEXT}": "text_encoder",
    f"lora_te1_{TEXT}": "text_encoder",
    f"lora_te2_{TEXT}": "text_encoder_2",
}
# The names of modules that have an underscore themselves: what makes the paths readable again.
_WORDS = (
    "down_blocks|mid_block|up_blocks|transformer_blocks|proj_in|proj_out|to_q|to_k|to_v|to_out|conv_in|conv_out|"
    "conv_shortcut|time_emb_proj|time_embedding|add_embedding|linear_1|linear_2|input_blocks|middle_block|"
    "output_blocks|in_layers|out_layers|emb_layers|skip_connection|time_embed|label_emb|"
    "self_attn|q_proj|k_proj|v_proj|out_proj"
)
_TOKEN = re.compile(rf"(?:{_WORDS}|[^_]+)(?=_|$)")
_IS_LDM = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.")
GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"


def owns(keys: Collection[str]) -> bool:
    """Whether the tensors are named kohya's way."""
    return all(key.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")) for key in keys)


def read(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> LoraAdapter:
    """Read the file. A missing alpha means the rank, as for kohya."""
    names = sorted({key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)})
    refuse_unknown(tensors.keys() - {name + end for name in names for end in (DOWN, UP, ALPHA, MAGNITUDE)}, file)
    layers, unknown = {}, []
    for name in names:
        down = tensors[name + DOWN]
        module = _module(name)
        if module is None:
            unknown.append(name + DOWN)
            continue
        magnitude = tensors.get(name + MAGNITUDE)
        if magnitude is not None:  # (out, 1[, 1, 1]) here; (out,) or (1, out, 1, 1) in peft
            magnitude = magnitude.flatten() if down.ndim == 2 else magnitude.reshape(1, -1, 1, 1)
        alpha = float(tensors[name + ALPHA]) if name + ALPHA in tensors else float(down.shape[0])
        layers[module] = LoraLayer(down, partner(tensors, name + UP, file), alpha, magnitude=magnitude)
    refuse_unknown(unknown, file)
    return LoraAdapter(checked(layers, str(file)), Provenance.from_header(metadata), other_header(metadata))


def suits(adapter: LoraAdapter) -> bool:
    """For Stable Diffusion 1, 2 and XL."""
    return adapter.architecture.startswith(("stable-diffusion-v1", "stable-diffusion-v2", "stable-diffusion-xl"))


def target(adapter: LoraAdapter, output: Path) -> Path:
    """A name that says what is erased: the programs list adapters by it."""
    return as_file(output, f"{adapter.provenance.title}.safetensors")


def write(adapter: LoraAdapter, file: Path) -> list[Path]:
    """Write the file. alpha is float32, and takes up rsLoRA's different scale."""
    if len({layer.alpha for layer in adapter.layers.values()}) > 1:
        log.warning(
            "warning: %s keeps a different alpha for some layers, which diffusers reads wrongly from kohya files;"
            " load the diffusers format there",
            file,
        )
    tensors = {}
    for name, layer in adapter.layers.items():
        key = _key(name, adapter.architecture)
        tensors[key + DOWN], tensors[key + UP] = layer.down, layer.up
        tensors[key + ALPHA] = torch.tensor(layer.scale * layer.rank if layer.rslora else layer.alpha)
        if layer.magnitude is not None:
            ones = [1] * (layer.down.ndim - 1)
            tensors[key + MAGNITUDE] = layer.magnitude.reshape(-1, *ones)
    save_safetensors(tensors, file, _header(adapter, tensors, file))
    return [file]


def _module(name: str) -> str | None:
    """'lora_unet_mid_block_attentions_0_proj_in' -> 'unet.mid_block.attentions.0.proj_in'; None if it is unknown."""
    for prefix, component in PREFIXES.items():
        if name.startswith(prefix):
            path = ".".join(_TOKEN.findall(name.removeprefix(prefix)))
            if component == "unet" and _IS_LDM.match(path):
                ours = SDXL.to_diffusers(path)
                return None if ours is None else f"unet.{ours}"
            return f"{component}.{path}"
    return None


def _key(name: str, architecture: str) -> str:
    """The inverse of `_module`."""
    component, _, path = name.partition(".")
    is_xl = "-xl-" in architecture
    if component == "unet":
        theirs = SDXL.to_ldm(path) if is_xl else path
        return "lora_unet_" + (theirs or path).replace(".", "_")
    prefix = {"text_encoder": "lora_te1_" if is_xl else "lora_te_", "text_encoder_2": "lora_te2_"}[component]
    return prefix + TEXT + path.replace(".", "_")


def _header(adapter: LoraAdapter, tensors: dict[str, Tensor], file: Path) -> dict[str, str]:
    """Kohya's `ss_` and `sshs_` fields, and the modelspec standard's."""
    provenance, architecture = adapter.provenance, adapter.architecture
    is_v2, is_xl = "-v2-" in architecture, "-xl-" in architecture
    is_v = provenance.prediction_type == "v_prediction"
    version = "sdxl_base_v1-0" if is_xl else f"sd_v{2 if is_v2 else 1}{'_v' if is_v else ''}"
    side = provenance.resolution or (1024 if is_xl else 768 if architecture.endswith("768-v") else 512)
    alphas = {layer.alpha for layer in adapter.layers.values()}
    training = {
        "ss_base_model_version": version,
        "ss_v2": str(is_v2),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_output_name": file.stem,
        **({"ss_sd_model_name": provenance.base_model} if provenance.base_model else {}),
    } | {key: value for key, value in adapter.header.items() if key.startswith("ss_")}
    content, legacy = _hashes(tensors, training)
    concepts = ", ".join(provenance.concepts) or "a concept"
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/lora",
        "implementation": GENERATIVE_MODELS if is_xl else "diffusers",
        "implementation_version": f"erasediff-lora/{__version__}",
        "title": provenance.title,
        "description": f"Erases {concepts} from {provenance.base_model or 'the base model'}.",
        "resolution": f"{side}x{side}",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "prediction_type": "v" if is_v else provenance.prediction_type or "epsilon",
        "usage_hint": "Load it at strength 1; no trigger word.",
    }
    foreign = {key: value for key, value in adapter.header.items() if not key.startswith("sshs_")}
    return (
        {"format": "pt"}
        | {f"modelspec.{name}": value for name, value in spec.items()}
        | foreign
        | training
        | {"modelspec.hash_sha256": f"0x{content}", "sshs_model_hash": content, "sshs_legacy_hash": legacy}
        | provenance.header()
    )


def _hashes(tensors: dict[str, Tensor], training: dict[str, str]) -> tuple[str, str]:
    """SHA-256 of the file's tensor bytes, and A1111's old hash: 64 KiB from 1 MiB on, of a file with `ss_` only."""
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, training)
    start = 8 + int.from_bytes(data[:8], "little")
    return hashlib.sha256(data[start:]).hexdigest(), hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]
