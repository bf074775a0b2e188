"""Adapters applied by other programs' own code, on full-size bases in a single file.

Each function takes a checkout of the program (None: it is installed), the base, the adapter's file and the model's
name, and returns the changed weights by their names in the single file. What a program imports and its loader does not
use is a stand-in, where it is not installed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from bench_merge import MODELS, single_file_name, unet_of
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from erasediff_lora.families import ldm

Weights = Mapping[str, Tensor]
TEXT = MODELS["sd15"][2][0][2]


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Packages that are not installed, as modules in which every name is an empty class."""

    def __init__(self, *names: str) -> None:
        self.names = {name for name in names if "." in name or importlib.util.find_spec(name) is None}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        parts = fullname.split(".")
        if any(".".join(parts[:end]) in self.names for end in range(1, len(parts) + 1)):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: _stand_in(name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


def _stand_in(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda self, *args, **options: None, "__call__": lambda self, *args: {}})


def comfyui(checkout: Path | None, base: Path, file: Path, model: str) -> Weights:
    """ComfyUI's Load LoRA, on the UNet and, of Stable Diffusion 1, the text encoder."""
    _use(checkout, "torchvision", "torchaudio", "torchsde", "kornia", "spandrel", "av", "sentencepiece", "alembic")
    sys.argv = ["comfyui", "--cpu", "--force-fp32", "--fp32-text-enc"]
    importlib.import_module("comfy.options").enable_args_parsing()
    sd, utils = importlib.import_module("comfy.sd"), importlib.import_module("comfy.utils")
    has_text = model == "sd15"
    unet, clip, *_ = sd.load_checkpoint_guess_config(str(base), output_vae=False, output_clip=has_text)
    unet, clip = sd.load_lora_for_models(unet, clip, utils.load_torch_file(str(file), safe_load=True), 1.0, 1.0)
    if not has_text:  # one weight at a time: ComfyUI keeps all as they were beside the changed ones
        return _Patched(unet, importlib.import_module("comfy.lora").calculate_weight)
    unet.patch_model()
    clip.load_model()
    state = unet.model.state_dict()
    found = {ldm.UNET + name.removeprefix(_Patched.PREFIX): state[name] for name in unet.patches}
    state = clip.patcher.model.state_dict()
    return found | {TEXT + name.partition("text_model.")[2]: state[name] for name in clip.patcher.patches}


class _Patched(Mapping[str, Tensor]):
    """The weights of ComfyUI's model with its patches, each computed when it is asked for."""

    PREFIX = "diffusion_model."

    def __init__(self, patcher: Any, calculate: Callable[..., Tensor]) -> None:
        self.patches, self.state, self.calculate = patcher.patches, patcher.model.state_dict(), calculate

    def __getitem__(self, name: str) -> Tensor:
        own = self.PREFIX + name.removeprefix(ldm.UNET)
        return self.calculate(self.patches[own], self.state[own].clone(), own)

    def __iter__(self) -> Iterator[str]:
        return (ldm.UNET + own.removeprefix(self.PREFIX) for own in self.patches)

    def __len__(self) -> int:
        return len(self.patches)


def kohya(checkout: Path | None, base: Path, file: Path, model: str) -> Weights:
    """sd-scripts' merge_lora.py, sdxl_merge_lora.py."""
    parts = ("sai_model_spec", "train_util", "model_util", "sdxl_model_util")
    _use(checkout, "einops", "toml", "torchvision", "cv2", *(f"library.{part}" for part in parts))
    sys.path.insert(0, f"{checkout}/networks")
    name = "original_unet" if model == "sd15" else "sdxl_original_unet"
    module = importlib.import_module(f"library.{name}")
    with torch.device("meta"):
        if model == "sd15":
            sizes = {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768}
            unet = module.UNet2DConditionModel(**sizes, use_linear_projection=False, upcast_attention=False)
            names = {own: single_file_name(model, own) for own in unet.state_dict()}
        else:
            unet = module.SdxlUNet2DConditionModel()
            names = {own: ldm.UNET + own for own in unet.state_dict()}
    _fill(unet, base, names)
    text = nn.Module()
    text.text_model = _text_encoder(base) if model == "sd15" else nn.Module()
    before = _pointers(unet, names) | _pointers(text, _text_names(text, "text_model."))
    if model == "sd15":
        script = importlib.import_module("merge_lora")
        script.merge_to_sd_model(text, unet, [str(file)], [1.0], torch.float)
    else:
        script = importlib.import_module("sdxl_merge_lora")
        script.merge_to_sd_model(text, nn.Module(), unet, [str(file)], [1.0], [], torch.float)
    return _changed(before, [(unet, names), (text, _text_names(text, "text_model."))])


def diffusers(checkout: Path | None, base: Path, file: Path, model: str) -> Weights:
    """`load_lora_weights` and `fuse_lora`."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    unet = unet_of(model)
    names = {own: single_file_name(model, own) for own in unet.state_dict()}
    _fill(unet, base, names)
    parts: dict[str, Any] = {"unet": unet, "vae": None, "tokenizer": None, "scheduler": None}
    if model == "sd15":
        parts |= {"text_encoder": _text_encoder(base), "safety_checker": None, "feature_extractor": None}
        pipe: Any = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    else:
        parts |= {"text_encoder": None, "text_encoder_2": None, "tokenizer_2": None}
        pipe = StableDiffusionXLPipeline(**parts)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    pipe.fuse_lora(components=["unet", "text_encoder"] if model == "sd15" else ["unet"])
    found: dict[str, Tensor] = {}
    for part, own in ((unet, names), (pipe.text_encoder, None)):
        for path, layer in part.named_modules() if part is not None else ():
            if hasattr(layer, "lora_A"):
                weight = layer.get_base_layer().weight
                found[f"{TEXT}{path}.weight" if own is None else own[f"{path}.weight"]] = weight
    return found


def invokeai(checkout: Path | None, base: Path, file: Path, model: str) -> Weights:
    """InvokeAI's patcher, where it is installed; on the UNet."""
    if checkout is not None:
        sys.path.insert(0, str(checkout))
    import invokeai.backend.model_manager.load.model_loaders.lora as loader
    from invokeai.backend.model_manager.load.model_cache.torch_module_autocast import torch_module_autocast
    from invokeai.backend.patches.layer_patcher import LayerPatcher

    unet = unet_of(model)
    names = {name: single_file_name(model, name) for name in unet.state_dict()}
    _fill(unet, base, names)
    torch_module_autocast.apply_custom_layers_to_model(unet)
    tensors = load_file(file)
    if model == "sdxl":
        tensors = loader.convert_sdxl_keys_to_diffusers_format(tensors)
    patch = loader.lora_model_from_sd_state_dict(tensors)
    paths = [path for path, _ in unet.named_modules() if f"lora_unet_{path.replace('.', '_')}" in patch.layers]
    with LayerPatcher.apply_smart_model_patches(
        unet, [(patch, 1.0)], "lora_unet_", torch.float32, force_direct_patching=True
    ):
        state = unet.state_dict()
        return {names[f"{path}.weight"]: state[f"{path}.weight"].clone() for path in paths}


PROGRAMS: dict[str, Callable[[Path | None, Path, Path, str], Weights]] = {
    "diffusers": diffusers,
    "kohya": kohya,
    "comfyui": comfyui,
    "invokeai": invokeai,
}


def _use(checkout: Path | None, *stand_ins: str) -> None:
    if checkout is not None:
        sys.path.insert(0, str(checkout))
    sys.meta_path.insert(0, StandIns(*stand_ins))


def _fill(module: nn.Module, base: Path, names: dict[str, str]) -> None:
    with safe_open(base, "pt") as stored:
        module.load_state_dict({own: stored.get_tensor(name) for own, name in names.items()}, assign=True)
    module.requires_grad_(False)


def _text_encoder(base: Path) -> CLIPTextModel:
    width, layers, prefix = MODELS["sd15"][2][0]
    with torch.device("meta"):
        encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
        )
    _fill(encoder, base, {own: prefix + own for own in encoder.state_dict()})
    for name, buffer in list(encoder.named_buffers()):
        if buffer.is_meta:
            owner = encoder.get_submodule(name.rpartition(".")[0])
            owner.register_buffer(name.rpartition(".")[2], torch.arange(buffer.numel()).reshape(buffer.shape), False)
    return encoder


def _text_names(module: nn.Module, prefix: str) -> dict[str, str]:
    return {own: TEXT + own.removeprefix(prefix) for own in module.state_dict()}


def _pointers(module: nn.Module, names: dict[str, str]) -> dict[str, int]:
    state = module.state_dict()
    return {name: state[own].data_ptr() for own, name in names.items()}


def _changed(before: dict[str, int], modules: Iterable[tuple[nn.Module, dict[str, str]]]) -> Weights:
    """The weights that have been replaced."""
    found: dict[str, Tensor] = {}
    for module, names in modules:
        state = module.state_dict()
        found |= {name: state[own] for own, name in names.items() if state[own].data_ptr() != before[name]}
    return found
