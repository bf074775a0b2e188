"""Adapters applied by other programs' own code, on full-size bases in a single file.

Each function takes a checkout of the program (None: it is installed), the base, the adapter's file and the model's
name, and returns the changed weights by their names in the single file. What a program imports and its loader does not
use is a stand-in, where it is not installed.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
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
    has_text, inside = model == "sd15", "diffusion_model."
    unet, clip, *_ = sd.load_checkpoint_guess_config(str(base), output_vae=False, output_clip=has_text)
    unet, clip = sd.load_lora_for_models(unet, clip, utils.load_torch_file(str(file), safe_load=True), 1.0, 1.0)
    if not has_text:  # one weight at a time: ComfyUI keeps all as they were beside the changed ones
        state, calculate = unet.model.state_dict(), importlib.import_module("comfy.lora").calculate_weight
        own = {ldm.UNET + name.removeprefix(inside): name for name in unet.patches}
        return _Lazy(own, lambda name: calculate(unet.patches[own[name]], state[own[name]].clone(), own[name]))
    unet.patch_model()
    clip.load_model()
    state = unet.model.state_dict()
    found = {ldm.UNET + name.removeprefix(inside): state[name] for name in unet.patches}
    state = clip.patcher.model.state_dict()
    return found | {TEXT + name.partition("text_model.")[2]: state[name] for name in clip.patcher.patches}


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
    """InvokeAI's conversion of names and its patcher; of Stable Diffusion 1 on the text encoder too."""
    manager = "invokeai.backend.model_manager"
    parts = ("model_hash", "quantization", "util.logging", "util.devices", "model_manager.configs")
    loading = ("load_base", "load_default", "model_loader_registry", "model_loaders", "memory_snapshot")
    packages = ("gguf", "bitsandbytes", "picklescan", "onnxruntime", "spandrel", "einops", "semver", "cv2", "blake3")
    _use(
        *(checkout, *packages, "deprecated", "compel", "invokeai.app"),
        *(f"invokeai.backend.{part}" for part in parts),
        *(f"{manager}.load.{part}" for part in (*loading, "model_cache.model_cache")),
    )
    for name in ("invokeai.backend.util.logging", "invokeai.backend.util"):
        logs: Any = importlib.import_module(name)
        logs.InvokeAILogger = SimpleNamespace(get_logger=logging.getLogger)
    devices: Any = importlib.import_module("invokeai.backend.util.devices")
    devices.TorchDevice = SimpleNamespace(CPU_DEVICE=torch.device("cpu"))
    cache: Any = importlib.import_module(f"{manager}.load.model_cache.model_cache")
    cache.MODEL_LOAD_LOCK = SimpleNamespace(read_lock=contextlib.nullcontext)
    conversions = "invokeai.backend.patches.lora_conversions"
    tensors = load_file(file)
    if model == "sdxl":
        names_of = importlib.import_module(f"{conversions}.sdxl_lora_conversion_utils")
        tensors = names_of.convert_sdxl_keys_to_diffusers_format(tensors)
    patch = importlib.import_module(f"{conversions}.sd_lora_conversion_utils").lora_model_from_sd_state_dict(tensors)
    patcher = importlib.import_module("invokeai.backend.patches.layer_patcher").LayerPatcher
    autocast = f"{manager}.load.model_cache.torch_module_autocast.torch_module_autocast"
    networks: list[tuple[nn.Module, str, Callable[[str], str]]] = [
        (unet_of(model), "lora_unet_", lambda path: single_file_name(model, f"{path}.weight"))
    ]
    if model == "sd15":
        networks.append((_text_model(), "lora_te_text_model_", lambda path: f"{TEXT}{path}.weight"))
    places: dict[str, tuple[nn.Module, Any]] = {}
    for network, prefix, named in networks:
        importlib.import_module(autocast).apply_custom_layers_to_model(network)
        for key in [key for key in patch.layers if key.startswith(prefix)]:
            with contextlib.suppress(AttributeError):  # then InvokeAI leaves it out, with a warning
                path, module = patcher._get_submodule(network, key.removeprefix(prefix), layer_key_is_flattened=True)
                places[named(path)] = module, patch.layers[key]

    def changed(name: str) -> Tensor:
        """One layer at a time: InvokeAI keeps all weights as they were beside the changed ones."""
        module, layer = copy.deepcopy(places[name][0]), places[name][1]
        with safe_open(base, "pt") as stored:
            module.weight = nn.Parameter(stored.get_tensor(name), requires_grad=False)
        one = [(type(patch)({"it": layer}), 1.0)]
        holder = nn.ModuleDict({"it": module})
        with patcher.apply_smart_model_patches(holder, one, "", torch.float32, force_direct_patching=True):
            return module.weight.detach()

    return _Lazy(places, changed)


def forge(checkout: Path | None, base: Path, file: Path, model: str) -> Weights:
    """Forge's `load_lora_for_models`, and what it computes of the patches; of Stable Diffusion 1 with text encoder."""
    parts = ("memory_management", "utils", "operations", "args")
    ui = ("sd_models", "cache", "errors", "hashes", "scripts", "shared")
    stand_ins = (*(f"backend.{part}" for part in parts), *(f"modules.{part}" for part in ui))
    _use(checkout, "gguf", "bitsandbytes", "einops", *stand_ins)
    sys.path.insert(0, f"{checkout}/extensions-builtin/sd_forge_lora")
    _web_ui(SimpleNamespace())
    memory: Any = importlib.import_module("backend.memory_management")
    memory.cast_to_device = lambda tensor, device, dtype: tensor.to(device, dtype)
    networks, merging = importlib.import_module("networks"), importlib.import_module("backend.patcher.lora")
    with safe_open(base, "pt") as stored:
        unet = {f"diffusion_model.{k.removeprefix(ldm.UNET)}": k for k in stored.keys() if k.startswith(ldm.UNET)}  # noqa: SIM118
        prefix = "clip_l.transformer.text_model."
        text = {prefix + k.removeprefix(TEXT): k for k in stored.keys() if k.startswith(TEXT)}  # noqa: SIM118
    pair = _Recorder(unet, LDM_CONFIG[model]), _Recorder(text if model == "sd15" else {}, {})
    networks.load_lora_for_models(*pair, load_file(file), 1.0, 1.0)
    patches = {part.names[own]: patch for part in pair for own, patch in part.patches.items()}

    def changed(name: str) -> Tensor:
        with safe_open(base, "pt") as stored:
            return merging.merge_lora_to_weight([(1.0, patches[name], 1.0, None, None)], stored.get_tensor(name))

    return _Lazy(patches, changed)


LDM_CONFIG: dict[str, dict[str, Any]] = {
    "sd15": {
        "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
    },
    "sdxl": {
        "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3,
    },
}  # fmt: skip
"""What the authors' configurations say of the UNets."""


class _Recorder:
    """What Forge patches: a model of which the names are known, that keeps the patches."""

    def __init__(self, names: dict[str, str], config: dict[str, Any]) -> None:
        self.names = names
        self.model = self.cond_stage_model = self
        self.diffusion_model, self.config = SimpleNamespace(config=config), SimpleNamespace(huggingface_repo="")
        self.patches: dict[str, Any] = {}

    def state_dict(self) -> dict[str, str]:
        """Their names by Forge's."""
        return self.names

    def clone(self) -> _Recorder:
        """Itself."""
        return self

    def add_patches(self, patches: dict[str, Any], **options: Any) -> list[str]:
        """Keep those of weights that there are."""
        self.patches = {name: patch for name, patch in patches.items() if name in self.names}
        return list(self.patches)


def a1111(checkout: Path | None, base: Path, file: Path, model: str) -> Weights:
    """The webui's `load_network`, and what its modules compute; of Stable Diffusion 1 with text encoder."""
    sys.path.insert(0, f"{checkout}/extensions-builtin/Lora")
    sys.meta_path.insert(0, StandIns("gradio", "lora_patches", "modules"))
    network = SimpleNamespace(is_sdxl=model == "sdxl", network_layer_mapping={}, model=None)
    names: dict[str, str] = {}
    with safe_open(base, "pt") as stored:
        for name in stored.keys():  # noqa: SIM118
            begin = "transformer.text_model." if name.startswith(TEXT) else "diffusion_model."
            path = begin + name.removeprefix(ldm.UNET).removeprefix(TEXT).removesuffix(".weight")
            if not (name.startswith((ldm.UNET, TEXT)) and name.endswith(".weight")):
                continue
            if (module := _empty_module(stored.get_slice(name).get_shape())) is not None:
                names[path.replace(".", "_")] = name
                network.network_layer_mapping[path.replace(".", "_")] = module
    _web_ui(network)
    loaded = importlib.import_module("networks").load_network("this", SimpleNamespace(filename=str(file)))
    modules = {names[own]: module for own, module in loaded.modules.items()}

    def changed(name: str) -> Tensor:
        with safe_open(base, "pt") as stored:
            weight = stored.get_tensor(name)
        return weight + modules[name].calc_updown(weight)[0]

    return _Lazy(modules, changed)


def _empty_module(shape: list[int]) -> nn.Module | None:
    """What a weight of that shape belongs to, without memory."""
    with torch.device("meta"):
        if len(shape) == 2:
            return nn.Linear(shape[1], shape[0])
        return nn.Conv2d(shape[1], shape[0], (shape[2], shape[3])) if len(shape) == 4 else None


def _web_ui(model: Any) -> None:
    """What the extension asks of the program around it."""
    cpu = torch.device("cpu")
    modules: Any = importlib.import_module("modules")
    options = SimpleNamespace(lora_dir=tempfile.mkdtemp(), lyco_dir_backcompat="")
    modules.shared = SimpleNamespace(cmd_opts=options, walk_files=lambda *args, **more: [], sd_model=model)
    modules.sd_models = SimpleNamespace(read_state_dict=load_file)
    modules.devices = SimpleNamespace(cpu=cpu, device=cpu, dtype=torch.float32)


class _Lazy(Mapping[str, Tensor]):
    """Weights that are computed when they are asked for."""

    def __init__(self, names: Iterable[str], compute: Callable[[str], Tensor]) -> None:
        self.names, self.compute = list(names), compute

    def __getitem__(self, name: str) -> Tensor:
        return self.compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


PROGRAMS: dict[str, Callable[[Path | None, Path, Path, str], Weights]] = {
    "diffusers": diffusers,
    "kohya": kohya,
    "comfyui": comfyui,
    "a1111": a1111,
    "forge": forge,
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


def _text_model() -> CLIPTextModel:
    """Stable Diffusion 1's text encoder, without memory."""
    width, layers, _ = MODELS["sd15"][2][0]
    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers))


def _text_encoder(base: Path) -> CLIPTextModel:
    encoder, prefix = _text_model(), TEXT
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
