"""Several concepts in one adapter: how well each is forgotten, what is kept, near and far, how long it takes.

    export OMP_NUM_THREADS=1
    python scripts/benchmarks/bench_several.py --runs runs/several --seeds 0 1 2
    python scripts/benchmarks/bench_several.py --runs runs/atlas --atlas build/atlas_model

On the embedded model, or with --atlas on the base of that name (scripts/base_models), whose concepts have near
neighbours. Each training is a folder under --runs: finished ones are read, not repeated, so that several shells can
share the work; adapters of the robust preset are attacked by concept inversion. Anchors are the retained concepts in
turn. Seconds are processor time of the training alone (on a GPU those of the clock), of its loop or of the closed form:
drawing the sets and looking at pictures is not counted. Prints a Markdown table and writes a JSON file into --runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
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

DEMO = {
    "five_1": ["cat", "car", "clock", "fish", "house"],
    "five_2": ["heart", "flower", "book", "cloud", "face"],
    "five_3": ["cat", "flower", "house", "face", "book"],
    "five_4": ["car", "heart", "fish", "cloud", "clock"],
    "nine": ["cat", "car", "clock", "fish", "house", "heart", "flower", "book", "cloud"],
    "cat": ["cat"],
}
TWENTY = (
    *("cat", "car", "sun", "apple", "clock", "house", "tulip", "guitar", "shirt", "doughnut"),
    *("dog", "bus", "moon", "pear", "hammer", "church", "sunflower", "rocket", "fish", "butterfly"),
)
ATLAS = {f"atlas_{count}": list(TWENTY[:count]) for count in (1, 5, 10, 20)}
"""Each has near neighbours that stay."""
CHOICES = DEMO | ATLAS
SEARCH = {"restarts": 2, "samples": 40}
ATTACKED: dict[str, Any] = {
    "evaluation.attacks": ["inversion", "output_inversion"],
    "evaluation.inversion": SEARCH,
    "evaluation.output_inversion": SEARCH,
}
METHODS: dict[str, dict[str, Any]] = {
    "each": {"objective.constraints": "each"},
    "joint": {"objective.constraints": "joint"},
    "joint_eta": {"objective.constraints": "joint", "objective.eta": 1.5},
    "closed_form": {"objective": {"name": "uce"}, "adapter.rank": 8},
    "closed_form_each": {"adapter.start": "closed_form", "training.steps": 100},
    "each_100": {"training.steps": 100},
    "each_600": {"training.steps": 600},
    # On the same sets, with the rates that did best for one concept and the recipe's own.
    "saliency": {"objective": {"name": "saliency", "preset": "salun_sd"}},
    "saliency_0.003": {"objective": {"name": "saliency", "preset": "salun_sd"}, "training.learning_rate": 0.003},
    "esd": {"objective": {"name": "esd", "retain_weight": 1.0}},
    "esd_0.003": {"objective": {"name": "esd", "retain_weight": 1.0}, "training.learning_rate": 0.003},
    "concept_ablation": {"objective": {"name": "concept_ablation", "target_from": "base"}},
    "concept_ablation_0.003": {
        "objective": {"name": "concept_ablation", "target_from": "base"},
        "training.learning_rate": 0.003,
    },
    "all_weights": {"adapter": {"kind": "none"}, "training.learning_rate": 0.0001, "objective.constraints": "joint"},
    "all_weights_0.001": {
        **{"adapter": {"kind": "none"}, "training.learning_rate": 0.001},
        **{"objective.constraints": "joint", "objective.eta": 1.0},
    },
}
METHODS |= {
    name: {"preset": "robust", **ATTACKED, **fields}
    for name, fields in {
        "robust": {},
        "robust_batch32": {"training.batch_size": 32},
        "robust_batch32_searches5": {"training.batch_size": 32, "adversary.searches": 5},
        "robust_600": {"training.steps": 600},
    }.items()
}
RESULT = "bench.json"


@dataclass(frozen=True)
class World:
    """What can be drawn, and by which base.

    Args:
        concepts: All of them, in groups of near neighbours.
        values: Fields of the recipe that differ from the demo's.
    """

    concepts: list[list[str]]
    values: dict[str, Any]


def atlas(folder: Path) -> World:
    """The base of that name, as `card_base.py` installed it in a folder."""
    measured = json.loads((folder / "measured.json").read_text())
    judge = f"classifier:{folder / 'judge.safetensors'}"
    values: dict[str, Any] = {"model.base": str(folder), "evaluation.judge": judge}
    values |= {f"{kind}.placeholders": {"style": list(measured["by_style"])} for kind in ("forget", "retain")}
    # Six pictures of each retained concept in each of three styles there, one in each of eight here.
    values |= {"forget.count": 240, "retain.count": 544}
    return World(list(measured["groups"].values()), values)


def train(recipe: Recipe) -> float:
    """Seconds of the closed form and of the steps, without what comes before them."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    spent = 0.0

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal spent
            began = clock()
            try:
                return function(*arguments)
            finally:
                spent += clock() - began

        return call

    with (
        patch.object(loop, "take_step", timed(loop.take_step)),
        patch.object(loop, "start_from_closed_form", timed(start_from_closed_form)),
        patch.object(setup, "start_from_closed_form", timed(start_from_closed_form)),
    ):
        loop.train(recipe, overwrite=True)
    return spent


def measure(world: World, choice: str, method: str, seed: int, folder: Path) -> None:
    """One training with its evaluation, written to the folder."""
    names = CHOICES[choice]
    others = [name for group in world.concepts for name in group if name not in names]
    anchored = [{"name": name, "anchor": others[place % len(others)]} for place, name in enumerate(names)]
    overrides = {
        "forget.concepts": anchored,
        "retain.concepts": others,
        "evaluation.attacks": [],
        "evaluation.paraphrases.names": {},
        "evaluation.metrics": ["accuracy"],
        "evaluation.forget_samples": 20 * len(names),
        "evaluation.retain_samples": max(100, 8 * len(others)),
        "training.seed": seed,
        "output": str(folder),
        **world.values,
        **METHODS[method],
    }
    recipe = Recipe.parse(overlay(read_yaml(Path(demo.__file__).with_name("recipe.yaml")), overrides))
    seconds = train(recipe)
    found = evaluate(recipe, folder, folder)
    write_text(folder / RESULT, json.dumps({"seconds": round(seconds, 1), "found": found}, indent=2) + "\n")


def retained(world: World, choice: str, per_concept: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Shares by the erased model and by the base: of the groups that lost a concept, and of the others."""
    near = {name for group in world.concepts if set(group) & set(CHOICES[choice]) for name in group}
    found = {}
    for kind, names in (("near", near), ("far", per_concept.keys() - near)):
        kept = [one for name, one in per_concept.items() if name in names and "retain_accuracy" in one]
        pictures = sum(one["pictures"] for one in kept)
        if pictures:
            found[kind] = {"pictures": pictures} | {
                label: sum(one[share] * one["pictures"] for one in kept) / pictures
                for label, share in (("erased", "retain_accuracy"), ("base", "retain_accuracy_base"))
            }
    return found


def row(world: World, choice: str, method: str, seed: int, folder: Path) -> dict[str, Any] | None:
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
    found_again = {
        attack: {
            model: {name: one["tries"] for name, one in outcome["per_concept"].items()}
            for model, outcome in found["models"].items()
        }
        for attack, found in result["found"].get("attacks", {}).items()
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
        "neighbours": retained(world, choice, accuracy["per_concept"]),
        "seconds": result["seconds"],
    } | ({"attacks": found_again} if found_again else {})


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a training."""
    heads = ["concepts", "method", "seed", "UA", "worst", "RA (base)", "near (base)", "far (base)"]
    heads += ["found by words; by outputs", "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for one in rows:
        shown = [one["choice"], one["method"], one["seed"], f"{one['mean']:.1%}", f"{one['worst']:.0%}"]
        shown.append(f"{one['retained']:.1%} ({one['retained_by_base']:.1%})")
        shares = [one["neighbours"].get(kind) for kind in ("near", "far")]
        shown += [f"{share['erased']:.1%} ({share['base']:.1%})" if share else "–" for share in shares]
        best = [
            ", ".join(f"{name} {max(tries.values()):.0%}" for name, tries in found["erased"].items())
            for found in one.get("attacks", {}).values()
        ]
        shown.append("; ".join(best) or "–")
        lines.append("| " + " | ".join(map(str, [*shown, one["seconds"]])) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--atlas", type=Path, help="folder of the atlas base")
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), help="default: all of the base's")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = atlas(arguments.atlas.resolve()) if arguments.atlas else World([[name] for name in demo.CONCEPTS], {})
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for method in arguments.methods:
            for choice in arguments.choices or (ATLAS if arguments.atlas else DEMO):
                folder = arguments.runs / f"{choice}-{method}-{seed}"
                if not (folder / RESULT).is_file():
                    print(folder.name, flush=True)
                    process = multiprocessing.get_context("fork").Process(
                        target=measure, args=(world, choice, method, seed, folder)
                    )
                    process.start()
                    process.join()
                if (one := row(world, choice, method, seed, folder)) is not None:
                    rows.append(one)
    print(table(rows))
    write_text(arguments.runs / "bench_several.json", json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
