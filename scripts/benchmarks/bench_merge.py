"""Merging adapters into full-size Stable Diffusion single files, beside copying those files.

    python scripts/benchmarks/bench_merge.py [--models sd15 sdxl] [--repeats 6] [--folder DIR]

The weights are random. For each dtype and adapter the copy (cp, then fsync) and the merge (its own fsync included) take
turns, each as often after the one as after the other; medians are shown. The ratio is the median over the pairs that
ran one after the other, since disks swing more between minutes than within one. The merge runs in a process of its own,
whose peak resident memory is reported; the seconds that Python takes to import torch are reported apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from architectures import SD_1_5, SD_VAE, SDXL
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from erasediff_lora.adapter import LoraAdapter, LoraLayer, formats, modules
from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.families import ldm

CHILD = """
import json, re, sys, time
began = time.perf_counter()
from erasediff_lora.adapter import Weighted, merge
imported = time.perf_counter()
merge(sys.argv[1], [Weighted.read(sys.argv[2])], sys.argv[3], overwrite=True)
done = time.perf_counter()
# Not ru_maxrss, which starts from what the parent process held.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps({"import_seconds": imported - began, "seconds": done - imported, "peak_bytes": peak}))
"""


# Model -> its UNet's configuration and numbering, and the width, layers and prefix of each text encoder.
MODELS: dict[str, tuple[dict[str, Any], ldm.UNetNumbering, list[tuple[int, int, str]]]] = {
    "sd15": (
        SD_1_5,
        ldm.UNetNumbering(2, frozenset({1, 2, 3})),
        [(768, 12, "cond_stage_model.transformer.text_model.")],
    ),
    "sdxl": (
        SDXL,
        ldm.SDXL,
        [
            (768, 12, "conditioner.embedders.0.transformer.text_model."),
            (1280, 32, "conditioner.embedders.1."),  # its names don't matter: only the UNet is adapted here
        ],
    ),
}
# Dtypes and adapters to measure for each model.
CASES: dict[str, tuple[list[torch.dtype], list[tuple[str, int]]]] = {
    "sd15": ([torch.float16, torch.float32], [("attention", 4), ("attention_feed_forward_convolutions", 16)]),
    "sdxl": ([torch.float16], [("attention", 4), ("attention_feed_forward_convolutions", 16)]),
}


def unet_of(model: str) -> UNet2DConditionModel:
    """The model's UNet, without memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(**MODELS[model][0])


def single_file_name(model: str, name: str) -> str:
    """What a tensor of the UNet is called in a single file."""
    path, _, leaf = name.rpartition(".")
    return f"{ldm.UNET}{MODELS[model][1].to_ldm(path)}.{leaf}"


def architecture(model: str) -> dict[str, torch.Size]:
    """Tensor name in a single file -> shape."""
    encoders = MODELS[model][2]
    with torch.device("meta"):
        vae = AutoencoderKL(**SD_VAE)
        texts = [
            CLIPTextModel(CLIPTextConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers))
            for width, layers, _ in encoders
        ]
    shapes = {single_file_name(model, key): tensor.shape for key, tensor in unet_of(model).state_dict().items()}
    shapes |= {f"first_stage_model.{key}": tensor.shape for key, tensor in vae.state_dict().items()}
    for text, (_, _, prefix) in zip(texts, encoders, strict=True):
        shapes |= {prefix + key: tensor.shape for key, tensor in text.state_dict().items()}
    return shapes


def build(file: Path, model: str, dtype: torch.dtype, *, only_unet: bool = False) -> None:
    """Write the checkpoint with small random weights, or its UNet alone."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(shape).normal_(std=0.02, generator=generator).to(dtype)
        for name, shape in architecture(model).items()
        if name.startswith(ldm.UNET) or not only_unet
    }
    save_file(tensors, file, {"format": "pt"})


def adapter(model: str, preset: str, rank: int) -> LoraAdapter:
    """A random adapter on the modules of a preset."""
    unet = unet_of(model)
    generator = torch.Generator().manual_seed(1)
    layers = {}
    for path in modules.resolve(preset, StableDiffusion.target_presets, modules.adaptable(unet)):
        rows, *rest = unet.get_submodule(path).weight.shape
        ones = [1] * (len(rest) - 1)
        layers[f"unet.{path}"] = LoraLayer(
            torch.randn(rank, *rest, generator=generator) * 0.01,
            torch.randn(rows, rank, *ones, generator=generator) * 0.01,
            float(rank),
        )
    return LoraAdapter(layers)


def settle(target: Path) -> None:
    """Remove the last copy and let the disk finish what that costs, before the clock starts."""
    target.unlink(missing_ok=True)
    os.sync()
    time.sleep(2)


def copy(source: Path, target: Path) -> float:
    """Seconds that cp and fsync take."""
    settle(target)
    began = time.perf_counter()
    subprocess.run(["cp", source, target], check=True)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())
    return time.perf_counter() - began


def merge(source: Path, lora: Path, target: Path) -> dict[str, float]:
    """Run the merge in a process of its own."""
    settle(target)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, source, lora, target], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, model: str, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """All adapters on a checkpoint of one dtype."""
    source, target = folder / "model.safetensors", folder / "out.safetensors"
    build(source, model, dtype)
    rows = []
    for preset, rank in CASES[model][1]:
        lora, *_ = formats.write(adapter(model, preset, rank), folder, "diffusers", overwrite=True)
        copies, merges = [], []
        copy(source, target)  # the first of each is not counted: caches are cold
        merge(source, lora, target)
        # What ran before matters (whose freed pages and blocks are reused): copy, merge, merge, copy.
        for turn in range(2 * repeats):
            if turn % 4 in (0, 3):
                copies.append(copy(source, target))
            else:
                merges.append(merge(source, lora, target))
        row: dict[str, Any] = {
            "model": model,
            "dtype": str(dtype).removeprefix("torch."),
            "file_bytes": source.stat().st_size,
            "targets": preset,
            "rank": rank,
            "copy_seconds": statistics.median(copies),
            "merge_seconds": statistics.median(m["seconds"] for m in merges),
            "import_seconds": statistics.median(m["import_seconds"] for m in merges),
            "peak_bytes": max(int(m["peak_bytes"]) for m in merges),
            "all_copy_seconds": copies,
            "all_merge_seconds": [m["seconds"] for m in merges],
        }
        row["ratios"] = sorted(m["seconds"] / c for m, c in zip(merges, copies, strict=True))
        row["ratio"] = statistics.median(row["ratios"])
        row["load"] = os.getloadavg()[0]
        rows.append(row)
        print(
            f"{model:5} {row['dtype']:9} {row['file_bytes'] / 1e9:6.2f} GB  {preset:36} r={rank:<3}"
            f" {row['copy_seconds']:8.2f} s {row['merge_seconds']:8.2f} s {row['ratio']:6.2f}"
            f" {row['peak_bytes'] / 2**30:8.2f} GiB",
            flush=True,
        )
    return rows


def main() -> None:
    """Measure and write docs/results/merge.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where the checkpoints go for the time being (15 GB)")
    parser.add_argument("--output", type=Path, default=Path("docs/results/merge.json"))
    options = parser.parse_args()
    print(
        f"{'model':5} {'dtype':9} {'file':>9}  {'targets':36} {'rank':5}"
        f" {'copy':>10} {'merge':>10} {'ratio':>6} {'peak':>12}"
    )
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        rows = [
            row
            for model in options.models
            for dtype in CASES[model][0]
            for row in measure(Path(name), model, dtype, options.repeats)
        ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
