"""Prepare and train on sets of many pictures: the memory that they take, and how soon a cached one trains.

    OMP_NUM_THREADS=1 python scripts/benchmarks/bench_large_set.py [--counts 1000 100000] [--side 512] [--resolution 64]

Pictures are drawn by a script, as JPEG with a caption of their own each; the base is tiny, so that the memory is that
of the sets. Every stage runs in a process of its own. Prints a Markdown table and writes large_set.json under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
PREPARE = """
import sys, torch
from erasediff_lora.recipe import Recipe
from erasediff_lora import denoisers
from erasediff_lora.data import sets
from erasediff_lora.machine.devices import peak_memory

recipe = Recipe.load(sys.argv[1])
denoiser = denoisers.load(recipe.model)
denoiser.pipeline
before = peak_memory(torch.device("cpu"))
for kind in ("forget", "retain"):
    sets.prepare(recipe, denoiser, kind)
print(peak_memory(torch.device("cpu")) - before)
"""
TRAIN = """
import sys, time, psutil
from erasediff_lora.recipe import Recipe
from erasediff_lora.training import loop

seen = []
step = loop.take_step

def measured(run, number):
    found = step(run, number)
    seen.append((time.perf_counter(), psutil.Process().memory_info().rss // 1024))
    return found

loop.take_step = measured
began = time.perf_counter()
loop.train(Recipe.load(sys.argv[1]), overwrite=True)
print(seen[0][0] - began, seen[-1][1])
"""


def draw(folder: Path, count: int, side: int) -> None:
    """So many pictures in folders of a thousand, with captions in metadata.jsonl."""
    if (folder / "metadata.jsonl").is_file():
        return
    generator = np.random.default_rng(0)
    lines = []
    for number in range(count):
        place = Path(f"{number // 1000:03}") / f"{number:06}.jpg"
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        colours = Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        colours.resize((side, side), Image.Resampling.BILINEAR).save(folder / place, quality=75)
        lines.append(json.dumps({"file_name": place.as_posix(), "text": f"a photo of a dog, number {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def run(program: str, recipe: Path) -> tuple[str, float]:
    """What a program prints, and the seconds that it takes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, recipe], env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()[-1], time.perf_counter() - began


def measured(work: Path, base: Path, count: int, side: int, resolution: int) -> dict[str, Any]:
    """One size of set."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import tiny_values

    place = work / f"{count}"
    began = time.perf_counter()
    draw(place / "pictures", count, side)
    drawn = time.perf_counter() - began
    values = tiny_values(
        base, place,
        retain={"images": {"folder": str(place / "pictures"), "concept": "dog"}, "concepts": ["dog"]},
        sampling={"resolution": resolution, "batch_size": 32},
        training={"steps": 100, "batch_size": 16, "checkpoint_every": 100},
    )  # fmt: skip
    file = place / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    shutil.rmtree(place / "cache", ignore_errors=True)
    prepared, seconds = run(PREPARE, file)
    row: dict[str, Any] = {
        "drawing_seconds": round(drawn), "prepare_seconds": round(seconds),
        "prepare_MiB": round(int(prepared) / 2**20),
    }  # fmt: skip
    trained, _ = run(TRAIN, file)
    first, resident = trained.split()
    cached = sum(part.stat().st_size for part in (place / "cache").rglob("*") if part.is_file())
    return row | {
        "first_step_seconds": round(float(first), 1), "training_MiB": round(int(resident) / 1024),
        "cache_MiB": round(cached / 2**20),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/large_set"))
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--side", type=int, default=512, help="of a picture, in pixels")
    parser.add_argument("--resolution", type=int, default=64, help="that is trained at")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import tiny_pipeline

    work: Path = arguments.work.absolute()
    tiny_pipeline().save_pretrained(work / "base")
    report: dict[str, Any] = {"side": arguments.side, "resolution": arguments.resolution, "rows": {}}
    for count in arguments.counts:
        row = measured(work, work / "base", count, arguments.side, arguments.resolution)
        report["rows"][f"{count}"] = row
        (work / "large_set.json").write_text(json.dumps(report, indent=2) + "\n")
        print(count, row, flush=True)
    print("| pictures | prepare | beside the model | in the cache | first step of a cached start | training |")
    print("|---|---|---|---|---|---|")
    for name, row in report["rows"].items():
        print(
            f"| {int(name):,} | {row['prepare_seconds']} s | {row['prepare_MiB']} MiB | {row['cache_MiB']} MiB "
            f"| {row['first_step_seconds']} s | {row['training_MiB']} MiB |"
        )


if __name__ == "__main__":
    main()
