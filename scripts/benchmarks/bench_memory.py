"""The memory that training takes, beside what `plan` predicted, over a grid of configurations.

    python scripts/benchmarks/bench_memory.py --work build/memory [--only sd15-256] [--steps 2]

The bases have random weights. The sets are prepared in a process of their own, as they may
be on a small machine; the training then never loads the autoencoder and the text encoders. Peak memory: what the GPU
allocator held, or without a GPU the resident set. Prints a Markdown table and writes memory.json under --work; what is
there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from erasediff_lora.memory.plan import plan
from erasediff_lora.memory.room import gib
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.yaml_io import overlay

CHECKPOINTING: dict[str, Any] = {"training.gradient_checkpointing": True}
EIGHT_BIT: dict[str, Any] = {"training.optimizer": "adamw8bit"}
GRID: dict[str, dict[str, Any]] = {
    "sd15-256": {},
    "sd15-256-checkpointing": CHECKPOINTING,
    "sd15-256-batch4": {"training.batch_size": 4},
    "sd15-256-batch4-checkpointing": {"training.batch_size": 4} | CHECKPOINTING,
    "sd15-256-batch4-accumulate4": {"training.batch_size": 4, "training.gradient_accumulation": 4},
    "sd15-256-float32": {"model.dtype": "float32"},
    "sd15-256-float32-checkpointing": {"model.dtype": "float32"} | CHECKPOINTING,
    "sd15-256-rank64-convolutions": {"adapter.rank": 64, "adapter.targets": "attention_feed_forward_convolutions"}
    | CHECKPOINTING,
    "sd15-256-full-cross_attention": {
        "model.dtype": "float32", "adapter": {"kind": "none", "targets": "cross_attention"},
    } | CHECKPOINTING,
    "sd15-512": {},
    "sd15-512-checkpointing": CHECKPOINTING,
    "sd15-512-checkpointing-8bit": CHECKPOINTING | EIGHT_BIT,
    "sdxl-512-checkpointing": CHECKPOINTING,
    "sdxl-1024-checkpointing-8bit": CHECKPOINTING | EIGHT_BIT,
}  # fmt: skip
"""Name -> overrides. It starts with the base and the resolution; without more: bfloat16, batch 1, rank 8."""
NF4: dict[str, Any] = {"model.quantize": "nf4"} | CHECKPOINTING | EIGHT_BIT
GPU_GRID: dict[str, dict[str, Any]] = {
    "sd15-512-nf4-checkpointing-8bit": NF4,
    "sdxl-1024-checkpointing": CHECKPOINTING,
    "sdxl-1024-nf4-checkpointing-8bit": NF4,
}
"""What takes a GPU, as quantised weights do."""
EVERY = GRID | GPU_GRID


def recipe_values(name: str, work: Path, steps: int) -> dict[str, Any]:
    """The recipe of a configuration, with its base and pictures under `work`."""
    base, resolution = name.split("-")[:2]
    family = "stable_diffusion_xl" if base == "sdxl" else "stable_diffusion"
    dtype = EVERY[name].get("model.dtype", "bfloat16")
    folder = work / f"{base}-{dtype}"
    if not folder.is_dir():
        subprocess.run([sys.executable, Path(__file__).parent / "random_bases.py", base, folder, dtype], check=True)
    pictures = work / f"pictures-{resolution}"
    if not pictures.is_dir():
        pictures.mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (int(resolution), int(resolution), 3), np.uint8)
        Image.fromarray(pixels).save(pictures / "picture.png")
    images = {"folder": str(pictures)}
    values: dict[str, Any] = {
        "model": {"base": str(folder), "dtype": dtype, "family": family},
        "forget": {
            "concepts": [{"name": "tench", "anchor": "church"}], "templates": ["a {concept}"], "images": images,
        },
        "retain": {
            "concepts": ["church"], "templates": ["a {concept}"], "images": images | {"caption": "a church"},
        },
        "sampling": {"resolution": int(resolution)},
        "adapter": {"rank": 8, "targets": "attention"},
        "objective": {"target": "anchor", "barrier": "gap"},
        "training": {"steps": steps, "batch_size": 1},
        "output": str(work / "runs" / name),
        "cache": str(work / "cache"),
    }  # fmt: skip
    return overlay(values, EVERY[name])


def measured(name: str, work: Path, steps: int) -> dict[str, Any]:
    """Prediction and measurement of one configuration."""
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe_values(name, work, steps)))
    recipe = Recipe.load(file)
    began = time.perf_counter()
    planned = plan(recipe, ["train"])
    seconds = time.perf_counter() - began
    prepare = [sys.executable, "-m", "erasediff_lora.cli", "prepare", str(file)]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    only_training = (
        "import sys, pathlib; from erasediff_lora.recipe import Recipe; from erasediff_lora.training.loop import train;"
        "train(Recipe.load(pathlib.Path(sys.argv[1])), overwrite=True)"
    )
    # glibc keeps what is freed below 32 MiB; from here on it is given back, so that what is resident is what is held.
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(256 * 2**10)}
    subprocess.run([sys.executable, "-c", only_training, file], check=True, env=given_back)
    lines = [json.loads(line) for line in (recipe.output / "training_log.jsonl").read_text().splitlines()]
    peak = lines[-1]["peak_memory_bytes"]
    held_elsewhere = {"runtime"} if planned.device == "cuda" else set()  # than in the allocator
    parts = {name: size for name, size in planned["train"].parts.items() if name not in held_elsewhere}
    return {
        "parts": parts,
        "predicted_bytes": sum(parts.values()),
        "measured_bytes": peak,
        "error": sum(parts.values()) / peak - 1,
        "plan_seconds": round(seconds, 1),
        "seconds_per_step": round(2 * recipe.training.batch_size / lines[-1]["samples_per_second"], 2),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| configuration | predicted | measured | error | planned in | a step |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {gib(row['predicted_bytes'])} | {gib(row['measured_bytes'])} "
            f"| {row['error']:+.1%} | {row['plan_seconds']} s | {row['seconds_per_step']} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/memory"))
    parser.add_argument("--only", nargs="+", choices=EVERY, default=list(GRID), metavar="NAME")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    file = arguments.work / "memory.json"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    report: dict[str, Any] = {"device": gpu or "CPU, resident set", "torch": torch.__version__, "rows": {}}
    if file.is_file():
        report["rows"] = json.loads(file.read_text())["rows"]
    for name in arguments.only:
        if name not in report["rows"]:
            report["rows"][name] = measured(name, arguments.work, arguments.steps)
            file.write_text(json.dumps(report, indent=2) + "\n")
            print(name, f"{report['rows'][name]['error']:+.1%}", flush=True)
    print(table(report["rows"]))


if __name__ == "__main__":
    main()
