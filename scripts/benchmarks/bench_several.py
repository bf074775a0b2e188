"""Several concepts in one adapter of the embedded model: how well each is forgotten, what is kept, how long it takes.

    export OMP_NUM_THREADS=1
    python scripts/benchmarks/bench_several.py --runs runs/several --seeds 0 1 2

Each training is a folder under --runs: finished ones are read, not repeated. Anchors are the retained concepts in
turn. Seconds are processor time of the training alone, of its loop or of the closed form: drawing the sets and looking
at pictures is not counted. Prints a Markdown table and writes a JSON file into --runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from erasediff_lora import demo
from erasediff_lora.evaluation.evaluate import evaluate
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.yaml_io import overlay, read_yaml
from erasediff_lora.storage.files import write_text
from erasediff_lora.training import loop, setup
from erasediff_lora.training.closed_form_start import start_from_closed_form

CHOICES = {
    "five_1": ["cat", "car", "clock", "fish", "house"],
    "five_2": ["heart", "flower", "book", "cloud", "face"],
    "five_3": ["cat", "flower", "house", "face", "book"],
    "five_4": ["car", "heart", "fish", "cloud", "clock"],
    "nine": ["cat", "car", "clock", "fish", "house", "heart", "flower", "book", "cloud"],
    "cat": ["cat"],
}
METHODS: dict[str, dict[str, Any]] = {
    "each": {"objective.constraints": "each"},
    "joint": {"objective.constraints": "joint"},
    "joint_eta": {"objective.constraints": "joint", "objective.eta": 1.5},
    "closed_form": {"objective": {"name": "uce"}, "adapter.rank": 8},
    "closed_form_each": {"adapter.start": "closed_form", "training.steps": 100},
}
RESULT = "bench.json"


def train(recipe: Recipe) -> float:
    """Processor seconds of the closed form and of the steps, without what comes before them."""
    spent = 0.0

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal spent
            began = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent += time.process_time() - began

        return call

    with (
        patch.object(loop, "take_step", timed(loop.take_step)),
        patch.object(loop, "start_from_closed_form", timed(start_from_closed_form)),
        patch.object(setup, "start_from_closed_form", timed(start_from_closed_form)),
    ):
        loop.train(recipe, overwrite=True)
    return spent


def measure(values: dict[str, Any], choice: str, method: str, seed: int, folder: Path) -> None:
    """One training with its evaluation, written to the folder."""
    names = CHOICES[choice]
    others = [name for name in demo.CONCEPTS if name not in names]
    anchored = [{"name": name, "anchor": others[place % len(others)]} for place, name in enumerate(names)]
    overrides = {
        "forget.concepts": anchored,
        "retain.concepts": others,
        "evaluation.attacks": [],
        "evaluation.paraphrases.names": {},
        "evaluation.metrics": ["accuracy"],
        "evaluation.forget_samples": 20 * len(names),
        "evaluation.retain_samples": 100,
        "training.seed": seed,
        "output": str(folder),
        **METHODS[method],
    }
    recipe = Recipe.parse(overlay(copy.deepcopy(values), overrides))
    seconds = train(recipe)
    found = evaluate(recipe, folder, folder)
    write_text(folder / RESULT, json.dumps({"seconds": round(seconds, 1), "found": found}, indent=2) + "\n")


def row(choice: str, method: str, seed: int, folder: Path) -> dict[str, Any] | None:
    """What the table says of a training; None where it failed."""
    if not (folder / RESULT).is_file():
        return None
    result = json.loads((folder / RESULT).read_text())
    accuracy = result["found"]["metrics"]["accuracy"]
    forgotten = {
        name: one["unlearning_accuracy"]
        for name, one in accuracy["per_concept"].items()
        if "unlearning_accuracy" in one
    }
    return {
        "choice": choice,
        "method": method,
        "seed": seed,
        "forgotten": forgotten,
        "worst": min(forgotten.values()),
        "mean": sum(forgotten.values()) / len(forgotten),
        "retained": accuracy["retain_accuracy"],
        "retained_by_base": accuracy["retain_accuracy_base"],
        "seconds": result["seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a training."""
    lines = ["| concepts | method | seed | UA | worst | RA (base) | seconds |", "|---|---|---|---|---|---|---|"]
    for one in rows:
        retained = f"{one['retained']:.1%} ({one['retained_by_base']:.1%})"
        shown = [one["choice"], one["method"], one["seed"], f"{one['mean']:.1%}", f"{one['worst']:.0%}"]
        lines.append("| " + " | ".join(map(str, [*shown, retained, one["seconds"]])) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values = read_yaml(Path(demo.__file__).with_name("recipe.yaml"))
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for method in arguments.methods:
            for choice in arguments.choices:
                folder = arguments.runs / f"{choice}-{method}-{seed}"
                if not (folder / RESULT).is_file():
                    print(folder.name, flush=True)
                    process = multiprocessing.get_context("fork").Process(
                        target=measure, args=(values, choice, method, seed, folder)
                    )
                    process.start()
                    process.join()
                if (one := row(choice, method, seed, folder)) is not None:
                    rows.append(one)
    print(table(rows))
    write_text(arguments.runs / "bench_several.json", json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
