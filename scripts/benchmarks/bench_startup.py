"""Processor time until a command that needs no model has answered: help of every verb, `recipes`, `inspect`.

    python scripts/benchmarks/bench_startup.py [--runs 5] [--work build/startup]

User and system time of the process, the median of the runs, after one that warms the file cache. Prints a Markdown
table and writes startup.json under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent.parent
PROGRAM = ["-m", "erasediff_lora.cli"]
HELP_BAR, INSPECT_BAR = 0.3, 1.0
"""Seconds that a command may take."""


def run(arguments: list[str]) -> tuple[float, str]:
    """Processor seconds of a new Python process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def seconds(arguments: list[str], runs: int) -> list[float]:
    """Of `runs` processes, the first one left out."""
    return [run(arguments)[0] for _ in range(runs + 1)][1:]


def small_adapter(file: Path) -> Path:
    """One layer of rank 4, in diffusers' format."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {"lora_A": np.ones((4, 32), np.float32), "lora_B": np.ones((32, 4), np.float32)}
    save_file({f"{layer}.{name}.weight": values for name, values in factors.items()}, file)
    return file


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/startup"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    verbs = re.findall(r"^    (\w+)(?: {2,}|$)", run([*PROGRAM, "--help"])[1], re.MULTILINE)
    adapter = str(small_adapter(arguments.work / "adapter.safetensors"))
    commands: dict[str, tuple[list[str], float | None]] = {
        "python -c pass": (["-c", "pass"], None),
        "import erasediff_lora": (["-c", "import erasediff_lora"], None),
        "--help": ([*PROGRAM, "--help"], HELP_BAR),
        **{f"{verb} --help": ([*PROGRAM, verb, "--help"], HELP_BAR) for verb in verbs},
        "inspect ADAPTER": ([*PROGRAM, "inspect", adapter], INSPECT_BAR),
    }
    if "recipes" in verbs:
        commands["recipes"] = ([*PROGRAM, "recipes"], HELP_BAR)
    rows = []
    print("| command | processor time | at most |\n|---|---|---|")
    for name, (command, bar) in commands.items():
        taken = seconds(command, arguments.runs)
        rows.append({"command": name, "seconds": statistics.median(taken), "runs": taken, "bar": bar})
        print(f"| `{name}` | {statistics.median(taken):.2f} s | {f'{bar} s' if bar else '–'} |", flush=True)
    found = {"environment": {"python": platform.python_version(), "machine": platform.machine()}, "rows": rows}
    (arguments.work / "startup.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
