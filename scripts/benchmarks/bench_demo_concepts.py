"""Erase every concept and every style of the demo model with one recipe, and tabulate what is gone, stays, comes back.

    export OMP_NUM_THREADS=1
    python scripts/benchmarks/bench_demo_concepts.py [--names cat blueprint] [--seeds 0 1 2] [--section.field V]

Each erasure is a run folder under --runs; finished ones are read, not repeated, so that several shells can share the
work. Prints a Markdown table and writes bench_demo_concepts.json. Attacks are those of the recipe: for all of them add
--evaluation.attacks '[inversion, adversarial_prompt, latent_start, relearning]'.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from erasediff_lora import __version__, demo
from erasediff_lora.cli.recipe_flags import overrides_from
from erasediff_lora.cli.running import DEMO_RECIPE, demo_overrides
from erasediff_lora.evaluation.evaluate import evaluate
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.run_folder import EVALUATION_FILE
from erasediff_lora.training.loop import train

SECONDS_FILE = "erasing_seconds.txt"


def erase(name: str, seed: int, runs: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate one erasure, unless its folder holds the result."""
    folder = runs / f"{name}-{seed}"
    chosen = demo_overrides(name) | {"output": str(folder), "training.seed": seed} | overrides
    recipe = Recipe.load(DEMO_RECIPE, chosen)
    if not (folder / EVALUATION_FILE).exists():
        began = time.perf_counter()
        train(recipe, overwrite=True)
        (folder / SECONDS_FILE).write_text(f"{time.perf_counter() - began:.1f}")
        evaluate(recipe, folder, folder)
    result = json.loads((folder / EVALUATION_FILE).read_text())
    distances = result["metrics"]["distances"]["own_samples"]
    attacks = {
        attack: {key: found["models"]["erased"].get(key) for key in ("success", "tries", "steps")}
        for attack, found in result["attacks"].items()
    }
    return result["metrics"]["accuracy"] | {
        "name": name,
        "seed": seed,
        "frechet": {model: distances[model]["frechet"] for model in ("erased", "base")},
        "attacks": attacks,
        "erasing_seconds": float((folder / SECONDS_FILE).read_text()),
        "adapter_bytes": (folder / "pytorch_lora_weights.safetensors").stat().st_size,
    }


def shown(attack: str, found: dict[str, Any] | None) -> str:
    """Its success; for relearning the steps that it took, for a latent start every strength."""
    if found is None:
        return "–"
    if attack == "relearning":
        return f"{found['steps'] or 'never'} steps"
    if attack == "latent_start":
        return " / ".join(f"{success:.0%}" for success in found["tries"].values())
    return f"{found['success']:.1%}"


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--names", nargs="+", default=demo.CONCEPTS + demo.STYLES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/bench_demo_concepts"))
    arguments, rest = parser.parse_known_args()
    rows = [
        erase(name, seed, arguments.runs, overrides_from(rest)) for name in arguments.names for seed in arguments.seeds
    ]
    attacks = list(dict.fromkeys(attack for row in rows for attack in row["attacks"]))
    heads = ["erased", "seed", "UA", "UA base", "RA", "RA base", "RA change", "Fréchet (base)", *attacks]
    heads += ["erasing s", "KB"]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for row in rows:
        accuracies = [
            f"{row[name]:.3f}"
            for name in ("unlearning_accuracy", "unlearning_accuracy_base", "retain_accuracy", "retain_accuracy_base")
        ]
        change = f"{row['retain_accuracy'] - row['retain_accuracy_base']:+.3f}"
        cost = (f"{row['erasing_seconds']:.0f}", f"{row['adapter_bytes'] / 1000:.0f}")
        distance = f"{row['frechet']['erased']:.1f} ({row['frechet']['base']:.1f})"
        successes = [shown(attack, row["attacks"].get(attack)) for attack in attacks]
        cells = (row["name"], str(row["seed"]), *accuracies, change, distance, *successes, *cost)
        print(f"| {' | '.join(cells)} |")
    report = {
        "version": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "rows": rows,
    }
    Path("bench_demo_concepts.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
