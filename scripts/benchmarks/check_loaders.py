"""Do other programs apply what we write, all layers and as it is meant? By their own code, on full-size random bases.

    python scripts/benchmarks/check_loaders.py --diffusers                      # the installed one
    python scripts/benchmarks/check_loaders.py --kohya CHECKOUT --comfyui CHECKOUT --a1111 CHECKOUT --forge CHECKOUT
        --invokeai CHECKOUT

An adapter on all attention, feed-forward and convolution layers, of Stable Diffusion 1.5 on those of the text encoder
too, with an alpha that is not its rank, is written in every format and read by every program. Each changed weight is
compared with W + scale · B · A in float64, and what is left out with `adapter/programs`. Exits with 1 if a layer is
missing or read otherwise that should not be. Stable Diffusion XL takes 11 GB of memory and as much disk. With --zeros
all weights of the base are 0, which takes no disk, and for A1111, Forge and InvokeAI little memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_merge import MODELS, adapter, architecture, build, single_file_name
from other_programs import PROGRAMS, TEXT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from erasediff_lora.adapter import LoraAdapter, LoraLayer, Provenance, describe, programs, write
from erasediff_lora.adapter.programs import losses_in
from erasediff_lora.families import ldm

MODULES = "attention_feed_forward_convolutions"
RANK, ALPHA = 4, 2.5
GREATEST = 1e-7
ARCHITECTURES = {"sd15": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}


def whole_adapter(model: str) -> LoraAdapter:
    """On the UNet, and on the text encoder of Stable Diffusion 1.5."""
    layers = {
        name: LoraLayer(layer.down, layer.up, ALPHA) for name, layer in adapter(model, MODULES, RANK).layers.items()
    }
    if model == "sd15":
        width, count, _ = MODELS[model][2][0]
        with torch.device("meta"):
            sizes = CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=count)
            text = CLIPTextModel(sizes)
        generator = torch.Generator().manual_seed(2)
        for path, module in text.named_modules():
            if isinstance(module, torch.nn.Linear):
                rows, columns = module.weight.shape
                down = torch.randn(RANK, columns, generator=generator) * 0.01
                up = torch.randn(rows, RANK, generator=generator) * 0.01
                layers[f"text_encoder.{path}"] = LoraLayer(down, up, ALPHA)
    return LoraAdapter(dict(sorted(layers.items())), Provenance(architecture=ARCHITECTURES[model]))


def files_of(ours: LoraAdapter, folder: Path) -> dict[str, Path]:
    """The adapter as it is written: kohya, diffusers, and the latter without its header, as older programs see it."""
    written = {name: write(ours, folder / f"{name}.safetensors", name)[0] for name in ("kohya", "diffusers")}
    bare = folder / "diffusers_without_header.safetensors"
    save_file(load_file(written["diffusers"]), bare, {"format": "pt"})
    return written | {"diffusers without header": bare}


def zeros(file: Path, model: str, *, only_unet: bool) -> None:
    """Write a base whose weights are all 0, as a file with a hole."""
    header, position = dict[str, object](), 0
    for name, shape in architecture(model).items():
        if name.startswith(ldm.UNET) or not only_unet:
            end = position + 4 * shape.numel()
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
            position = end
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + position)


def key_of(model: str, name: str) -> str:
    """Where the weight of a layer lies in the single file."""
    component, _, path = name.partition(".")
    return f"{TEXT}{path}.weight" if component == "text_encoder" else single_file_name(model, f"{path}.weight")


def check(program: str, checkout: Path | None, model: str, base: Path, file: Path, ours: LoraAdapter) -> dict[str, Any]:
    """Load and compare.

    Returns:
        Program, its version in adapter/programs, model and file; layers, those that adapter/programs expects to be
        read, those that were; and the greatest difference, None if the program refused the file.
    """
    format, stored = describe(file)
    lost = sum(loss.layers[0] for loss in losses_in(program, format, stored) if loss.are == "not read")
    names = {key_of(model, name): name for name in ours.layers}
    row = {
        "program": program,
        "version": programs.PROGRAMS[program].version,
        "model": model,
        "file": file.stem.replace("_", " "),
        "layers": len(names),
        "expected": len(names) - lost,
    }
    try:
        found = PROGRAMS[program](checkout, base, file, model)
    except (ValueError, KeyError, IndexError) as error:
        print(f"{program} refuses {file.name}: {error!s:.80}", file=sys.stderr)
        return row | {"taken": 0, "greatest": None}
    worst = 0.0
    with safe_open(base, "pt") as before:
        for key in found.keys() & names.keys():
            layer = ours.layers[names[key]]
            delta = (layer.up.double().flatten(1) @ layer.down.double().flatten(1)).reshape(layer.shape)
            exact = before.get_tensor(key).double() + layer.scale * delta
            worst = max(worst, float((found[key].double().reshape(exact.shape) - exact).abs().max()))
    taken = len(found.keys() & names.keys())
    return row | {"taken": taken, "greatest": worst if taken else None}


def is_good(row: dict[str, Any]) -> bool:
    """Whether all layers that should be read are, as they are meant."""
    return row["taken"] == row["expected"] and (row["greatest"] or 0.0) <= GREATEST


def main() -> None:
    """Every program that is asked for, one process each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for program in PROGRAMS:
        parser.add_argument(f"--{program}", nargs="?", const="", metavar="CHECKOUT", help="its folder, or installed")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--files", nargs="+", help="only these of kohya, diffusers and 'diffusers without header'")
    parser.add_argument("--folder", type=Path, help="where the bases go for the time being (4 and 11 GB)")
    parser.add_argument("--zeros", action="store_true", help="bases whose weights are 0: files that take no disk")
    parser.add_argument("--output", type=Path, default=Path("docs/results/loaders.json"))
    parser.add_argument("--one", nargs=4, metavar="X", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        program, model, base, file = options.one
        place = Path(given) if (given := getattr(options, program)) else None
        print(json.dumps(check(program, place, model, Path(base), Path(file), whole_adapter(model))))
        return
    rows = json.loads(options.output.read_text())["rows"] if options.output.is_file() else []
    made, failed = [], False
    for model in options.models:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            base = Path(folder) / f"{model}.safetensors"
            make = zeros if options.zeros else partial(build, dtype=torch.float32)
            make(base, model, only_unet=model != "sd15")
            files = files_of(whole_adapter(model), Path(folder))
            for program, name in itertools.product(PROGRAMS, options.files or files):
                if (checkout := getattr(options, program)) is None:
                    continue
                words = map(str, (f"--{program}", checkout, "--one", program, model, base, files[name]))
                run = subprocess.run([sys.executable, __file__, *words], check=False, stdout=subprocess.PIPE, text=True)
                if run.returncode:
                    failed = True
                    continue
                made.append(json.loads(run.stdout.splitlines()[-1]))
                print({True: "good", False: "BAD"}[is_good(made[-1])], made[-1], flush=True)
    same = {(row["program"], row["model"], row["file"]) for row in made}
    kept = [row for row in rows if (row["program"], row["model"], row["file"]) not in same]
    order = list(PROGRAMS)
    rows = sorted([*kept, *made], key=lambda row: (row["model"], order.index(row["program"]), row["file"]))
    options.output.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    sys.exit(failed or not all(map(is_good, made)))


if __name__ == "__main__":
    main()
