"""Does ComfyUI apply our files of transformers, every layer as it is meant? By its own code, on tiny random weights.

    python scripts/benchmarks/check_comfyui_transformers.py CHECKOUT [--output docs/results/comfyui_transformers.json]

An adapter on every linear layer, and one on the attention alone, is written as kohya and as diffusers. ComfyUI's own
map of names and its own arithmetic (`comfy/lora.py`) change the authors' weights; each is compared with W + ΔW in
float64. The checkout has to know the families: Z-Image and FLUX.2 came with December 2025.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from other_programs import StandIns
from torch import Tensor

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from tiny_transformers import (  # noqa: E402
    tiny_flux_2_klein_pipeline,
    tiny_flux_pipeline,
    tiny_qwen_image_pipeline,
    tiny_z_image_pipeline,
)

from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, write  # noqa: E402
from erasediff_lora.families import FAMILIES, NativeNames  # noqa: E402

MISSING = (
    *("torchvision", "torchaudio", "torchsde", "kornia", "spandrel", "av", "sentencepiece", "alembic", "einops"),
    *("comfy_aimdo", "comfy_kitchen"),
)
"""What ComfyUI imports on the way and its reading of LoRA does not use."""
ATTENTION = re.compile(r".*\.(to_q|to_k|to_v|to_out(\.0)?|add_[qkv]_proj|to_add_out|to_qkv_mlp_proj)$")
MODELS: dict[str, tuple[Callable[[], DiffusionPipeline], str, dict[str, int]]] = {
    "flux": (tiny_flux_pipeline, "Flux", {"depth": 2, "depth_single_blocks": 2, "hidden_size": 32}),
    "flux_2_klein": (tiny_flux_2_klein_pipeline, "Flux2", {"depth": 1, "depth_single_blocks": 2, "hidden_size": 32}),
    "z_image": (tiny_z_image_pipeline, "Lumina2", {"n_layers": 2, "dim": 32}),
    "qwen_image": (tiny_qwen_image_pipeline, "QwenImage", {}),
}
"""Family -> a tiny pipeline, ComfyUI's class, and what that knows of the network's size."""


def native(names: NativeNames, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the authors' names."""
    found = {}
    for path in weights:
        if (held := names.holding(path)) is not None:
            whole = torch.cat([weights[ours] for ours in held.modules])
            found[held.name] = torch.cat(whole.chunk(2)[::-1]) if held.swapped else whole
    return found


def adapter(family: str, weights: Mapping[str, Tensor]) -> LoraAdapter:
    """Random, of rank 2."""
    generator = torch.Generator().manual_seed(3)
    layers = {}
    for path, weight in sorted(weights.items()):
        down = torch.randn(2, weight.shape[1], generator=generator) * 0.1
        layers[f"transformer.{path}"] = LoraLayer(down, torch.randn(weight.shape[0], 2, generator=generator), 1.0)
    return LoraAdapter(layers, Provenance(architecture=FAMILIES[family].architectures[0].id))


def patched(comfy: Any, kind: str, size: dict[str, int], theirs: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The weights that ComfyUI changes, as it changes them."""

    class Model(getattr(comfy.model_base, kind)):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.model_config = type("Config", (), {"unet_config": size})

        def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Tensor]:
            return {f"diffusion_model.{name}.weight": weight for name, weight in theirs.items()}

    keys = comfy.lora.model_lora_keys_unet(Model(), {})
    given = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(file), safe_load=True))
    todo: dict[str, list[Any]] = {}
    for where, value in comfy.lora.load_lora(given, keys).items():
        key, offset, change = (where, None, None) if isinstance(where, str) else (*where, None)[:3]
        todo.setdefault(key, []).append((1.0, value, 1.0, offset, change))
    found = {}
    for key, patches in todo.items():
        name = key.removeprefix("diffusion_model.").removesuffix(".weight")
        found[name] = comfy.lora.calculate_weight(patches, theirs[name].clone(), key)
    return found


def main() -> None:
    """Every family, both files, all layers and the attention alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/comfyui_transformers.json")
    options = parser.parse_args()
    sys.meta_path.append(StandIns(*MISSING))
    sys.path.insert(0, str(options.checkout))
    sys.argv = ["comfyui", "--cpu", "--force-fp32"]
    importlib.import_module("comfy.options").enable_args_parsing()
    comfy = importlib.import_module("comfy")
    for name in ("lora", "lora_convert", "model_base", "utils"):
        importlib.import_module(f"comfy.{name}")
    version = importlib.import_module("comfyui_version").__version__
    rows = []
    for family, (make, kind, size) in MODELS.items():
        names = FAMILIES[family].native
        assert names is not None
        state = make().transformer.state_dict()
        weights = {k.removesuffix(".weight"): v for k, v in state.items() if k.endswith(".weight") and v.ndim == 2}
        for what, chosen in {
            "every linear layer": weights,
            "attention": {path: weight for path, weight in weights.items() if ATTENTION.match(path)},
        }.items():
            ours = adapter(family, chosen)
            theirs = native(names, weights)
            deltas = {path: ours.layers[f"transformer.{path}"].delta() if path in chosen else torch.zeros_like(w)
                      for path, w in weights.items()}  # fmt: skip
            changes = {name: delta for name, delta in native(names, deltas).items() if bool(delta.any())}
            for format in ("kohya", "diffusers"):
                with tempfile.TemporaryDirectory() as folder:
                    file = write(ours, Path(folder) / "a.safetensors", format)[0]
                    found = patched(comfy, kind, size, theirs, file)
                right = [
                    name
                    for name, delta in changes.items()
                    if name in found and float((found[name] - theirs[name] - delta).abs().max()) < 1e-5
                ]
                wrong = sorted(changes.keys() - set(right))
                rows.append(
                    {"family": family, "file": format, "layers": what, "weights": len(changes), "right": len(right),
                     "not_or_otherwise": wrong}
                )  # fmt: skip
                print(rows[-1], flush=True)
    options.output.write_text(json.dumps({"comfyui": version, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
