"""How long it takes, and how much memory, to refuse files that were made to harm.

    python scripts/fuzzing/bench_hostile.py [--work build/hostile] [--run runs/cat]

With --run, copies of an evaluated run are spoiled as well. Each file is opened by the command line in a process of its
own, after everything is imported. Prints a Markdown table and writes hostile.json under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hostile_files import ADAPTERS, PICTURES, RECIPES, RUNS, SETS
from PIL import Image

OPEN = """
import json, os, resource, sys, time
import erasediff_lora.adapter.formats, erasediff_lora.denoisers, erasediff_lora.training.loop
from erasediff_lora.cli import main

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, began = peak(), time.perf_counter()
status = main(sys.argv[1:])
result = {"status": status, "seconds": time.perf_counter() - began, "bytes": peak() - before}
print(json.dumps(result | {"code_ran": os.path.exists("pwned")}))
"""
IMAGES_RECIPE = {
    "forget": {"concepts": ["cat"], "templates": ["a {concept}"], "images": {"folder": "pictures"}},
    "retain": {"concepts": ["dog"], "templates": ["a {concept}"]},
    "objective": {"target": "uniform"},
    "cache": "cache",
}


def cases(work: Path, run: Path | None) -> Iterator[tuple[str, list[str]]]:
    """Write each file and yield what it is and the command that opens it."""
    for name, content in ADAPTERS.items():
        (work / "adapter.safetensors").write_bytes(content())
        yield f"adapter: {name}", ["inspect", "adapter.safetensors"]
    for name, content in RECIPES.items():
        (work / "recipe.yaml").write_bytes(content())
        yield f"recipe: {name}", ["prepare", "recipe.yaml"]
    (work / "recipe.yaml").write_text(yaml.safe_dump(IMAGES_RECIPE))
    (work / "pictures").mkdir(exist_ok=True)
    for name, content in PICTURES.items():
        (work / "pictures/picture.png").write_bytes(content())
        yield f"picture: {name}", ["prepare", "recipe.yaml"]
    (work / "secret.txt").write_text("secret\n")
    (work / "secret.json").write_text('{"secret": "secret"}')
    for name, spoil in SETS.items():
        shutil.rmtree(work / "pictures")
        (work / "pictures").mkdir()
        for number in range(2):
            Image.new("RGB", (64, 64), (number, 0, 0)).save(work / f"pictures/{number}.png")
        spoil(work / "pictures")
        yield f"set: {name}", ["prepare", "recipe.yaml"]
    if run is None:
        return
    for name, spoil in RUNS.items():
        shutil.rmtree(work / "run", ignore_errors=True)
        shutil.copytree(run, work / "run")
        spoil(work / "run")
        yield f"run: {name}, compared", ["compare", "run", "--output", "page.html", "--overwrite"]
        yield f"run: {name}, published", ["publish", "run", "--repo", "me/x", "--dry_run"]


def opened(command: list[str], work: Path) -> dict[str, Any]:
    """What opening a file did to the process that did it."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, *command], cwd=work, env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        return {"status": done.returncode, "seconds": None, "bytes": None, "code_ran": (work / "pwned").exists()}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Open them all, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/hostile"))
    parser.add_argument("--run", type=Path, help="an evaluated run")
    parsed = parser.parse_args()
    work: Path = parsed.work
    work.mkdir(parents=True, exist_ok=True)
    rows = {}
    print("| file | refused | after | memory |\n|---|---|---|---|")
    for name, command in cases(work, parsed.run):
        row = rows[name] = opened(command, work)
        refused = f"**no** (status {row['status']})"
        if name.startswith("run: ") and row["status"] == 0:
            refused = "left out"
        elif row["status"] == 2 and not row["code_ran"]:
            refused = "yes"
        cost = "– | –" if row["seconds"] is None else f"{row['seconds']:.2f} s | {row['bytes'] / 1e6:.0f} MB"
        print(f"| {name} | {refused} | {cost} |", flush=True)
    (work / "hostile.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
