"""The memory that training takes, beside what `plan` predicted, over a grid of configurations.

    python scripts/benchmarks/bench_memory.py --work build/memory [--only sd15-256] [--phases draw] [--steps 2]

The bases have random weights. The sets are prepared in a process of their own, as they may be on a small machine; the
training then never loads the autoencoder and the text encoders. Configurations called `whole` are measured in every
phase. Peak memory: what the GPU allocator held, or without a GPU the resident set. Prints a Markdown table and writes
memory.json under --work; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
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
ROBUST: dict[str, Any] = {"preset": "robust", "adversary.refresh_every": 1, "adversary.steps": 1}
WHOLE_GRID: dict[str, dict[str, Any]] = {
    "sd15-256-whole": {},
    "sd15-256-whole-robust": ROBUST,
    "sd15-512-whole-checkpointing": CHECKPOINTING,
    "sd15-512-whole-robust-checkpointing": ROBUST | CHECKPOINTING,
    "sdxl-512-whole-checkpointing": CHECKPOINTING,
    "sdxl-512-whole-robust-checkpointing": ROBUST | CHECKPOINTING,
}
"""What is measured in every phase: drawing or encoding the sets, a step of training, an evaluation with a judge."""
BATCH = 2
"""Pictures that are drawn or encoded at a time, and of each set."""
EVALUATION: dict[str, Any] = {
    "judge": "demo", "forget_samples": 2, "retain_samples": 2, "metrics": ["accuracy", "drift"],
    "attacks": ["inversion"], "inversion": {"restarts": 1, "steps": 1, "samples": 1, "batch_size": 1},
}  # fmt: skip
PHASE = """
import sys, torch
from erasediff_lora.cli import main
from erasediff_lora.machine.devices import peak_memory

status = main(sys.argv[2:])
print(peak_memory(torch.device(sys.argv[1])))
sys.exit(status)
"""
PHASES = ["draw", "train", "evaluate"]
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(256 * 2**10)}
"""glibc keeps what is freed below 32 MiB; from here on it is given back, so that what is resident is what is held."""
NF4: dict[str, Any] = {"model.quantize": "nf4"} | CHECKPOINTING | EIGHT_BIT
GPU_GRID: dict[str, dict[str, Any]] = {
    "sd15-512-nf4-checkpointing-8bit": NF4,
    "sdxl-1024-checkpointing": CHECKPOINTING,
    "sdxl-1024-nf4-checkpointing-8bit": NF4,
}
"""What takes a GPU, as quantised weights do."""
EVERY = GRID | GPU_GRID | WHOLE_GRID


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
        shape = int(resolution), int(resolution), 3
        for number in range(BATCH):
            pixels = np.random.default_rng(number).integers(0, 255, shape, np.uint8)
            Image.fromarray(pixels).save(pictures / f"{number}.png")
    images = {"folder": str(pictures)}
    values: dict[str, Any] = {
        "model": {"base": str(folder), "dtype": dtype, "family": family},
        "forget": {
            "concepts": [{"name": "cat", "anchor": "car"}], "templates": ["a {concept}"], "images": images,
        },
        "retain": {
            "concepts": ["car"], "templates": ["a {concept}"], "images": images | {"caption": "a car"},
        },
        "sampling": {"resolution": int(resolution), "steps": 1, "batch_size": BATCH},
        "evaluation": EVALUATION,
        "adapter": {"rank": 8, "targets": "attention"},
        "objective": {"target": "anchor", "barrier": "gap"},
        "training": {"steps": steps, "batch_size": 1},
        "output": str(work / "runs" / name),
        "cache": str(work / "cache"),
    }  # fmt: skip
    return overlay(values, EVERY[name])


def measured(name: str, work: Path, steps: int, only: Sequence[str]) -> dict[str, Any]:
    """Prediction and measurement of one configuration, of some of its phases."""
    file = work / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe_values(name, work, steps)))
    recipe = Recipe.load(file)
    began = time.perf_counter()
    phases = [phase for phase in (PHASES if name in WHOLE_GRID else ["train"]) if phase in only]
    planned = plan(recipe, phases)
    seconds = time.perf_counter() - began
    found = {"draw": peak_of("prepare", file, planned.device)}
    held_elsewhere = {"runtime"} if planned.device == "cuda" else set()  # than in the allocator

    def predicted(phase: str) -> dict[str, int]:
        return {part: size for part, size in planned[phase].parts.items() if part not in held_elsewhere}

    if phases == ["draw"]:
        sizes = {"predicted_bytes": sum(predicted("draw").values()), "measured_bytes": found["draw"]}
        return {"phases": {"draw": sizes}, **sizes, "error": sizes["predicted_bytes"] / found["draw"] - 1}
    only_training = (
        "import sys, pathlib; from erasediff_lora.recipe import Recipe; from erasediff_lora.training.loop import train;"
        "train(Recipe.load(pathlib.Path(sys.argv[1])), overwrite=True)"
    )
    subprocess.run([sys.executable, "-c", only_training, file], check=True, env=os.environ | GIVEN_BACK)
    lines = [json.loads(line) for line in (recipe.output / "training_log.jsonl").read_text().splitlines()]
    peak = lines[-1]["peak_memory_bytes"]
    found["train"] = peak
    if "evaluate" in phases:
        found["evaluate"] = peak_of("evaluate", recipe.output, planned.device)
    parts = predicted("train")
    compared = {
        phase: {
            "predicted_bytes": sum(predicted(phase).values()),
            "measured_bytes": found[phase],
        }
        for phase in phases
    }
    return {
        "phases": compared,
        "parts": parts,
        "predicted_bytes": sum(parts.values()),
        "measured_bytes": peak,
        "error": sum(parts.values()) / peak - 1,
        "plan_seconds": round(seconds, 1),
        "seconds_per_step": round(2 * recipe.training.batch_size / lines[-1]["samples_per_second"], 2),
    }


def peak_of(verb: str, target: Path, device: str) -> int:
    """Bytes that a verb takes at its peak, in a process of its own."""
    command = [sys.executable, "-c", PHASE, device, verb, str(target)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | GIVEN_BACK)
    return int(done.stdout.splitlines()[-1])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| configuration | predicted | measured | error | planned in | a step |", "|---|---|---|---|---|---|"]
    trained = {name: row for name, row in rows.items() if "plan_seconds" in row}
    for name, row in trained.items():
        lines.append(
            f"| {name} | {gib(row['predicted_bytes'])} | {gib(row['measured_bytes'])} "
            f"| {row['error']:+.1%} | {row['plan_seconds']} s | {row['seconds_per_step']} s |"
        )
    lines += ["", "| configuration | phase | predicted | measured | error |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        for phase, sizes in row.get("phases", {}).items() if name in WHOLE_GRID else ():
            predicted, peak = sizes["predicted_bytes"], sizes["measured_bytes"]
            lines.append(f"| {name} | {phase} | {gib(predicted)} | {gib(peak)} | {predicted / peak - 1:+.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet; print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/memory"))
    parser.add_argument("--only", nargs="+", choices=EVERY, default=list(GRID), metavar="NAME")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, metavar="PHASE")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    file = arguments.work / "memory.json"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    report: dict[str, Any] = {"device": gpu or "CPU, resident set", "torch": torch.__version__, "rows": {}}
    if file.is_file():
        report["rows"] = json.loads(file.read_text())["rows"]
    for name in arguments.only:
        if name not in report["rows"]:
            report["rows"][name] = measured(name, arguments.work, arguments.steps, arguments.phases)
            file.write_text(json.dumps(report, indent=2) + "\n")
            print(name, f"{report['rows'][name]['error']:+.1%}", flush=True)
    print(table(report["rows"]))


if __name__ == "__main__":
    main()
