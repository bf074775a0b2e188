"""The closed form at full size: time and memory with many concepts, on a base of random weights.

    python scripts/benchmarks/bench_closed_form.py --work build/closed_form --concepts 1 10 100

Every row is a process of its own that makes an adapter with `objective: uce` from the Stable Diffusion 1.5 architecture
in bfloat16, 12 prompts a concept, 20 retained concepts. Seconds are those of the closed form alone, without loading the
base; memory is the resident set at its peak, the base in it. Prints a Markdown table and writes closed_form.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from random_bases import build

from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.files import write_text
from erasediff_lora.training import loop

PLACES = ["a garden", "a street", "a museum", "snow"]
TEMPLATES = ["a photo of a {concept} in {place}", "a {concept} in {place}", "an old picture of a {concept} in {place}"]


def measure(base: Path, work: Path, concepts: int) -> dict[str, Any]:
    """One row."""
    prompts = {"templates": TEMPLATES, "placeholders": {"place": PLACES}}
    recipe = Recipe.parse(
        {
            "model": {"base": str(base), "dtype": "bfloat16", "device": "cpu"},
            "forget": {"concepts": [{"name": f"concept {n}", "anchor": "thing"} for n in range(concepts)], **prompts},
            "retain": {"concepts": [f"thing {n}" for n in range(20)], **prompts},
            "objective": {"name": "uce"},
            "adapter": {"rank": 64},
            "output": str(work / f"adapter-{concepts}"),
            "cache": str(work / "cache"),
        }
    )
    row: dict[str, Any] = {"concepts": concepts}
    start = loop.start_from_closed_form  # type: ignore[attr-defined]

    def timed(*arguments: Any) -> None:
        denoiser = arguments[1]
        _ = denoiser.pipeline, denoiser.network  # loading is not the closed form's
        began, spent = time.perf_counter(), time.process_time()
        start(*arguments)
        row["seconds"] = round(time.perf_counter() - began, 1)
        row["processor_seconds"] = round(time.process_time() - spent, 1)

    loop.start_from_closed_form = timed  # type: ignore[attr-defined, assignment]
    loop.train(recipe, overwrite=True)
    file = recipe.output / "pytorch_lora_weights.safetensors"
    return row | {
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "adapter_mib": round(file.stat().st_size / 2**20, 2),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Make the base, measure each row in a process, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--concepts", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    base = arguments.work / "sd15"
    if arguments.row is not None:
        print(json.dumps(measure(base, arguments.work, arguments.row)))
        return
    if not base.is_dir():
        build("sd15", base, torch.bfloat16)
    rows = []
    for concepts in arguments.concepts:
        command = [sys.executable, __file__, "--work", str(arguments.work), "--row", str(concepts)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
    print("| concepts | seconds | processor seconds | peak GiB | adapter MiB |\n|---|---|---|---|---|")
    for row in rows:
        shown = [row[key] for key in ("concepts", "seconds", "processor_seconds", "peak_gib", "adapter_mib")]
        print("| " + " | ".join(map(str, shown)) + " |")
    write_text(arguments.work / "closed_form.json", json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
