"""Samples a second of one process and of several that share every batch, one thread or one GPU each.

    python scripts/benchmarks/bench_processes.py [RECIPE] [--processes 1 2] [--steps 30]

Prints a Markdown table and writes processes.json under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WARM_UP = 3


def samples_a_second(recipe: Path, processes: int, steps: int, folder: Path) -> float:
    """Median over the steps of a run by the launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    flags = ["--training.steps", str(steps), "--output", str(folder), "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [*launcher, str(ROOT / "scripts/train_erase_lora.py"), str(recipe), *flags]
    subprocess.run(program, check=True, env=environment)
    lines = (folder / "training_log.jsonl").read_text().splitlines()[WARM_UP:]
    return statistics.median(json.loads(line)["samples_per_second"] for line in lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes/demo_concept.yaml")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("build/processes"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rates = {
        count: samples_a_second(arguments.recipe, count, arguments.steps, arguments.work / f"run-{count}")
        for count in arguments.processes
    }
    first = next(iter(rates.values()))
    print("| processes | samples a second | beside the first |\n|---|---|---|")
    for count, rate in rates.items():
        print(f"| {count} | {rate:.1f} | {rate / first:.2f} × |")
    (arguments.work / "processes.json").write_text(json.dumps(rates, indent=2) + "\n")


if __name__ == "__main__":
    main()
