"""Do other programs take our kohya files whole? Stable Diffusion 1.5 and XL at full size, with random weights.

    python scripts/benchmarks/check_loaders.py comfyui --source FOLDER    # a copy of ComfyUI, in its own environment
    python scripts/benchmarks/check_loaders.py invokeai                   # where InvokeAI is installed

An adapter of every attention, feed-forward and convolution layer is applied by the program's own code, and each weight
of the UNet is compared with what `merge` writes. Exits with 1 if a layer is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from bench_merge import MODELS, adapter, build, single_file_name, unet_of
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from erasediff_lora.adapter import Weighted, merge, write
from erasediff_lora.families import ldm

MODULES = "attention_feed_forward_convolutions"
RANK = 4


def comfyui(base: Path, file: Path, model: str) -> tuple[int, dict[str, Tensor]]:
    """Number of layers that it takes, and the UNet's tensors by their names in a single file."""
    sys.argv = ["comfyui", "--cpu", "--fp16-unet"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import comfy.utils

    loaded = comfy.sd.load_checkpoint_guess_config(str(base), output_vae=False, output_clip=False)[0]
    tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(loaded, None, tensors, 1.0, 0.0)
    patched.patch_model()
    state = patched.model.diffusion_model.state_dict()
    return len(patched.patches), {ldm.UNET + name: tensor for name, tensor in state.items()}


def invokeai(base: Path, file: Path, model: str) -> tuple[int, dict[str, Tensor]]:
    """Number of layers that it takes, and the UNet's tensors by their names in a single file."""
    import invokeai.backend.model_manager.load.model_loaders.lora as loader
    from invokeai.backend.model_manager.load.model_cache.torch_module_autocast import torch_module_autocast
    from invokeai.backend.patches.layer_patcher import LayerPatcher

    unet = unet_of(model)
    names = {name: single_file_name(model, name) for name in unet.state_dict()}
    with safe_open(base, "pt") as stored:
        unet.load_state_dict({name: stored.get_tensor(theirs) for name, theirs in names.items()}, assign=True)
    torch_module_autocast.apply_custom_layers_to_model(unet)
    tensors = load_file(file)
    if model == "sdxl":
        tensors = loader.convert_sdxl_keys_to_diffusers_format(tensors)
    patch = loader.lora_model_from_sd_state_dict(tensors)
    taken = {f"lora_unet_{path.replace('.', '_')}" for path, _ in unet.named_modules()} & patch.layers.keys()
    with LayerPatcher.apply_smart_model_patches(
        unet, [(patch, 1.0)], "lora_unet_", torch.float16, force_direct_patching=True
    ):
        return len(taken), {names[name]: tensor.clone() for name, tensor in unet.state_dict().items()}


PROGRAMS = {"comfyui": comfyui, "invokeai": invokeai}


def check(program: str, model: str, folder: Path) -> bool:
    """Write, load, compare, print; whether every layer was taken."""
    base, file, merged = (folder / f"{model}{end}.safetensors" for end in ("", "_lora", "_merged"))
    build(base, model, torch.float16)
    ours = adapter(model, MODULES, RANK)
    write(ours, file, "kohya")
    merge(base, [Weighted.read(file)], merged)
    taken, tensors = PROGRAMS[program](base, file, model)
    changed = differing = 0
    worst = 0.0
    with safe_open(base, "pt") as before, safe_open(merged, "pt") as after:
        for name in (name for name in after.keys() if name.startswith(ldm.UNET)):  # noqa: SIM118
            expected = after.get_tensor(name)
            changed += not torch.equal(expected, before.get_tensor(name))
            difference = float((tensors[name].float() - expected.float()).abs().max())
            differing, worst = differing + (difference > 0), max(worst, difference)
    print(f"{program}, {model}: {taken} of {len(ours.layers)} layers taken; merge changes {changed} tensors,", end=" ")
    print(f"{differing} differ from it, the worst by {worst:.1g}", flush=True)
    return taken == len(ours.layers)


def main() -> None:
    """One program, a model or two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--source", type=Path, help="folder of the program, if it is not installed")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    if arguments.source is not None:
        sys.path.insert(0, str(arguments.source))
    with tempfile.TemporaryDirectory() as folder:
        whole = [check(arguments.program, model, Path(folder)) for model in arguments.models]
    sys.exit(not all(whole))


if __name__ == "__main__":
    main()
