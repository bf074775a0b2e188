"""Train against conditions that are searched for in each space, and attack every adapter in each of them.

    export OMP_NUM_THREADS=1
    python scripts/benchmarks/bench_search_spaces.py [--name cat] [--seeds 0] [--trained plain ...] [--section.field V]

The spaces are those of `adversary.space`: tokens, a word that the text encoder reads; outputs, tokens as it hands them
out; both, by turns. Each adapter is a run folder under --runs; finished ones are read, not repeated. Prints a Markdown
table and writes bench_search_spaces.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from erasediff_lora import __version__
from erasediff_lora.cli.recipe_flags import overrides_from
from erasediff_lora.cli.running import DEMO_RECIPE, demo_overrides
from erasediff_lora.evaluation.evaluate import evaluate
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.run_folder import EVALUATION_FILE
from erasediff_lora.training.loop import train

TRAINED: dict[str, dict[str, Any]] = {
    "plain": {},
    "robust, tokens": {"preset": "robust", "adversary.space": "tokens"},
    "robust, outputs": {"preset": "robust", "adversary.space": "outputs"},
    "robust, both": {"preset": "robust", "adversary.space": "both"},
    "robust, both, continued": {"preset": "robust", "adversary.space": "both", "adversary.continued": 0.75},
    "robust, 4 outputs": {"preset": "robust", "adversary.space": "outputs", "adversary.vectors": 4},
}
ATTACKED: dict[str, dict[str, Any]] = {
    "tokens": {"space": "tokens"},
    "outputs": {"space": "outputs"},
    "4 outputs": {"space": "outputs", "vectors": 4},
}
COST = "processor_seconds.txt"


def measured(
    name: str, kind: str, seed: int, runs: Path, overrides: dict[str, Any], attacks: list[str]
) -> dict[str, Any]:
    """Train one adapter and attack it in every space, unless its folder holds the results."""
    folder = runs / f"{name}-{kind.replace(', ', '-').replace(' ', '-')}-{seed}"
    chosen = demo_overrides(name) | {"output": str(folder), "training.seed": seed} | TRAINED[kind] | overrides
    recipe = Recipe.load(DEMO_RECIPE, chosen)
    if not (folder / COST).exists():
        began = time.process_time()
        train(recipe, overwrite=True)
        (folder / COST).write_text(f"{time.process_time() - began:.0f}")
    found: dict[str, Any] = {"concept": name, "trained": kind, "seed": seed}
    found |= {"processor_seconds": float((folder / COST).read_text())}
    for attack in attacks:
        place = folder / "attacked" / attack.replace(" ", "-")
        if not (place / EVALUATION_FILE).exists():
            own = {f"evaluation.inversion.{key}": value for key, value in ATTACKED[attack].items()}
            place.mkdir(parents=True, exist_ok=True)
            evaluate(Recipe.load(DEMO_RECIPE, chosen | {"evaluation.attacks": ["inversion"]} | own), folder, place)
        result = json.loads((place / EVALUATION_FILE).read_text())
        found |= {key: result["metrics"]["accuracy"][key] for key in ("unlearning_accuracy", "retain_accuracy")}
        found["pictures"] = {
            "forget": recipe.evaluation.forget_samples,
            "retain": recipe.evaluation.retain_samples,
            "restart": next(iter(result["attacks"]["inversion"]["models"].values()))["pictures"],
        }
        distances = result["metrics"]["distances"]["own_samples"]
        found["frechet"] = {model: distances[model]["frechet"] for model in ("erased", "base")}
        models = result["attacks"]["inversion"]["models"]
        found[attack] = {model: models[model]["tries"] for model in ("erased", "base")}
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--name", default="cat")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--trained", nargs="+", choices=TRAINED, default=list(TRAINED), metavar="KIND")
    parser.add_argument("--attacked", nargs="+", choices=ATTACKED, default=list(ATTACKED), metavar="SPACE")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench_search_spaces"))
    arguments, rest = parser.parse_known_args()
    overrides = overrides_from(rest)
    rows = []
    heads = [
        "trained",
        "processor s",
        "forgotten",
        "retained",
        "Fréchet (base)",
        *(f"by {a}" for a in arguments.attacked),
    ]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for seed in arguments.seeds:
        for kind in arguments.trained:
            row = measured(arguments.name, kind, seed, arguments.runs, overrides, arguments.attacked)
            rows.append(row)
            tries = [
                ", ".join(f"{s:.1%}" for s in row[a]["erased"].values()) + f" (base {max(row[a]['base'].values()):.1%})"
                for a in arguments.attacked
            ]
            shares = [f"{row[key]:.1%}" for key in ("unlearning_accuracy", "retain_accuracy")]
            distance = f"{row['frechet']['erased']:.1f} ({row['frechet']['base']:.1f})"
            print(f"| {' | '.join([kind, str(row['processor_seconds']), *shares, distance, *tries])} |", flush=True)
            report = {"version": __version__, "torch": torch.__version__, "rows": rows}
            Path("bench_search_spaces.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
