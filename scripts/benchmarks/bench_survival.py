"""What erasures outlive: each run's adapter, after what users harmlessly do to a model.

    export OMP_NUM_THREADS=1
    python scripts/benchmarks/bench_survival.py runs/cat runs/clock --beside runs/car --out runs/survival

For each run folder and each hardship it calls `erasediff-lora evaluate` into a folder under --out; what is there is
read, not repeated, so that several shells can share the work. Prints a Markdown table and writes JSON into --out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from erasediff_lora.evaluation.survival.base import BEFORE
from erasediff_lora.storage.files import write_text

STEPS = "[50,200]"
HARDSHIPS: dict[str, dict[str, str]] = {
    "quantise": {"survival": "[quantise]"},
    "merge": {"survival": "[merge]", "merge.strengths": "[0.9,1.1]"},
    "stack": {"survival": "[stack]"},
    "finetune": {"survival": "[finetune]", "finetune.steps": STEPS},
    "full-1e-5": {
        "survival": "[finetune_full]", "finetune_full.steps": STEPS, "finetune_full.learning_rate": "1e-5",
    },
    "full-1e-4": {
        "survival": "[finetune_full]", "finetune_full.steps": STEPS, "finetune_full.learning_rate": "1e-4",
    },
}  # fmt: skip
"""Folder -> fields of `evaluation`."""
PICTURES = {
    "metrics": "[accuracy]",
    "attacks": "[]",
    "forget_samples": 40,
    "retain_samples": 54,
    "survival_samples": 40,
}


def evaluate(run: Path, hardship: str, beside: Path, folder: Path) -> None:
    """One hardship of one run, written to the folder."""
    fields = PICTURES | HARDSHIPS[hardship] | {"stack.adapters": f"[{beside}]"}
    flags = [word for name, value in fields.items() for word in (f"--evaluation.{name}", str(value))]
    command = ["evaluate", run, "--recipe", run, "--output", folder, *flags]
    subprocess.run([sys.executable, "-m", "erasediff_lora", *map(str, command)], check=True)


def rows(run: Path, hardship: str, folder: Path) -> list[dict[str, Any]]:
    """A row for each thing that was done."""
    (found,) = json.loads((folder / "evaluation.json").read_text())["survival"].values()
    return [
        {"run": run.name, "hardship": hardship, "variant": variant} | numbers
        for variant, numbers in found["variants"].items()
        if variant != BEFORE
    ]


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a line for each thing that was done, a column for each run, forgotten / retained (by the base)."""
    runs = list(dict.fromkeys(row["run"] for row in found))
    lines = ["| what was done | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for key in dict.fromkeys((row["hardship"], row["variant"]) for row in found):
        shown = {row["run"]: row for row in found if (row["hardship"], row["variant"]) == key}
        cells = [
            f"{shown[run]['unlearning_accuracy']:.0%} / {shown[run]['retain_accuracy']:.0%}"
            f" ({shown[run]['retain_accuracy_base']:.0%})"
            if run in shown
            else "–"
            for run in runs
        ]
        lines.append(f"| {key[0]}, {key[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    parser.add_argument("--beside", type=Path, required=True, help="another adapter, which is stacked on each")
    parser.add_argument("--hardships", nargs="+", choices=list(HARDSHIPS), default=list(HARDSHIPS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--read", action="store_true", help="run nothing: the table of what is there")
    arguments = parser.parse_args()
    found = []
    for run in arguments.runs:
        for hardship in arguments.hardships:
            folder = arguments.out / f"{run.name}-{hardship}"
            if not (folder / "evaluation.json").is_file():
                if arguments.read:
                    continue
                evaluate(run, hardship, arguments.beside, folder)
            found += rows(run, hardship, folder)
    print(table(found))
    write_text(arguments.out / "survival.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
