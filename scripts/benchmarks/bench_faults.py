"""Kill a training again and again, at random moments and just before files take their names, and resume it.

    OMP_NUM_THREADS=1 python scripts/benchmarks/bench_faults.py [RECIPE] [--kills 20] [--steps 30]

Every run must end with the adapter of the run that nobody disturbed, bit for bit, and leave nothing half-written.
Prints a Markdown table and writes faults.json under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
ADAPTER = "pytorch_lora_weights.safetensors"
KILLED_IN = """
import os, signal, sys
from pathlib import Path

name, nth = sys.argv[1], int(sys.argv[2])
replace, calls = Path.replace, 0

def replace_or_die(self, target):
    global calls
    calls += Path(target).name.startswith(name)
    if calls == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace_or_die
from erasediff_lora.cli import main
sys.exit(main(sys.argv[3:]))
"""
WRITES = {
    "a part of a set": "latents-",
    "the index of a set": "set.json",
    "the recipe": "recipe.yaml",
    "a checkpoint's adapter": "adapter.safetensors",
    "a checkpoint's optimizer": "trainer.pt",
    "a checkpoint": "step-",
    "the final adapter": ADAPTER,
    "the final adapter for other programs": "erase-",
}
"""What is written -> how its name begins."""

SMALL = [
    *("--forget.count", 16, "--retain.count", 16, "--sampling.steps", 4, "--training.batch_size", 4),
    *("--evaluation.forget_samples", 1, "--evaluation.retain_samples", 1, "--evaluation.metrics", "[]"),
]
"""What is killed need not be good."""


def start(*arguments: object) -> subprocess.Popen[str]:
    """Another Python, with this project."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def same_adapter(one: Path, two: Path) -> bool:
    """Whether two runs ended with the same adapter, bit for bit."""
    a, b = load_file(one / ADAPTER), load_file(two / ADAPTER)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def half_written(folder: Path) -> list[Path]:
    """Files under a final name that cannot be read."""
    found = []
    for file in folder.rglob("*.safetensors"):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue  # a temporary one
        try:
            load_file(file)
        except SafetensorError:
            found.append(file)
    return found


def kill_while(name: str, nth: int, *command: object) -> int:
    """Run a command that is killed just before the nth file whose name begins so takes its place."""
    killed = start("-c", KILLED_IN, name, nth, *command)
    killed.communicate()
    return killed.returncode


def kill_after_a_step(moments: random.Random, log: Path, longest: float, *command: object) -> int:
    """Run a command that is killed at a random moment after it has logged one more step."""
    running = start("-m", "erasediff_lora.cli", *command)
    lines = log.read_text().count("\n") if log.exists() else 0
    while running.poll() is None and not (log.exists() and log.read_text().count("\n") > lines):
        time.sleep(0.01)
    time.sleep(moments.uniform(0, longest))
    running.kill()
    running.communicate()
    return running.returncode


def main() -> None:
    """Kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes/demo_concept.yaml")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("build/faults"))
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    fields = ["--training.steps", arguments.steps, "--training.checkpoint_every", 1, "--cache", work / "cache", *SMALL]

    def train(folder: Path, *more: object) -> list[object]:
        return ["train", arguments.recipe, "--output", folder, *fields, *more]

    def finished(folder: Path) -> bool:
        start("-m", "erasediff_lora.cli", *train(folder, "--resume")).communicate()
        return same_adapter(folder, work / "whole") and not list(folder.rglob(".*"))

    start("-m", "erasediff_lora.cli", *train(work / "whole", "--overwrite")).communicate()
    rows: list[tuple[str, int, int, str]] = []
    for what, name in WRITES.items():
        run = work / "killed"
        for folder in (run, work / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        kills, broken = int(kill_while(name, 1, *train(run)) == -9), len(half_written(work))
        rows.append((f"SIGKILL while it writes {what}", kills, broken, f"{int(finished(run))} of 1"))
        print(rows[-1], flush=True)
    moments, run, kills, broken = random.Random(0), work / "random", 0, 0
    shutil.rmtree(run, ignore_errors=True)
    runs = []
    while kills < arguments.kills or run.exists():
        if kills < arguments.kills:
            kills += kill_after_a_step(moments, run / "training_log.jsonl", 1.5, *train(run, "--resume")) == -9
            broken += len(half_written(work))
        if kills == arguments.kills or (run / ADAPTER).exists():
            runs.append(finished(run))
            shutil.rmtree(run)
    rows.append(("SIGKILL at a random moment of the loop", kills, broken, f"{sum(runs)} of {len(runs)}"))
    print("| fault | times | half-written files | resumed runs equal to the undisturbed one |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    (work / "faults.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
