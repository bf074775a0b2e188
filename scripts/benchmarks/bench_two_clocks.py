"""Two clocks for every method: until the concept is forgotten and the rest kept, and until no attack brings it back.

    export OMP_NUM_THREADS=1
    RUN="python scripts/benchmarks/bench_two_clocks.py recipes/demo_concept.yaml --runs runs/two_clocks"
    $RUN --concepts cat clock car --seeds 0 1 2 --seconds 20000

Every contender of bench_two_clocks.yaml on the same adapter, sets and loop, from zero and, where it takes steps, from
the closed form. *Forgotten*: an unlearning accuracy of 95% or more with a retain accuracy within 2 points of the
base's, at steps of a fixed schedule. *Robust*: that, and every attack of ATTACKS finds the concept in a tenth of its
pictures at most, looked at after ATTACKED steps. Seconds are of the processor: what a method computes beforehand, the
closed form included, and its steps; pictures, sets and attacks are not counted. Each training is a folder under --runs;
finished ones are read, not repeated, and none is begun after --seconds. Prints a Markdown table, and writes it and a
JSON file into --runs, with what is missing.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from bench_methods import LOOK_SEED, Entry, Stopwatch, apart

from erasediff_lora import __version__
from erasediff_lora.cli.recipe_flags import overrides_from
from erasediff_lora.data.prompts import balanced
from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.evaluate import evaluate
from erasediff_lora.evaluation.judging import judge_of
from erasediff_lora.evaluation.metrics.accuracy import kept, success
from erasediff_lora.evaluation.pictures import forget_prompts, generate, painter, retain_prompts
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.yaml_io import overlay, read_yaml
from erasediff_lora.registry import OBJECTIVES
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.run_folder import lock_run
from erasediff_lora.training import distributed, loop
from erasediff_lora.training.closed_form_start import start_from_closed_form
from erasediff_lora.training.setup import adapt, find_near, load_base, set_up

CONTENDERS = Path(__file__).with_suffix(".yaml")
RESULT = "clocks.json"
SCHEDULE = [5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300]
"""Steps after which pictures are looked at, until the concept is forgotten."""
ATTACKED = [0, 20, 40, 60, 100, 200, 300]
"""Steps after which it is attacked, once it is forgotten, until nothing brings it back."""
ATTACKS = ["paraphrases", "inversion", "adversarial_prompt", "latent_start"]
REACHED, WITHIN, BROUGHT_BACK = 0.95, 0.02, 0.10
LOOKED_AT = 60
"""Pictures of each kind of prompts."""


@dataclass
class Contest:
    """One training, and what the clocks have shown so far.

    Attributes:
        recipe: What is trained.
        folder: Of the training.
        denoiser: The base with the adapter in it.
        watch: Counts what the method computes.
        base: The base's own retain accuracy on the pictures that are looked at.
        result: Of both clocks.
    """

    recipe: Recipe
    folder: Path
    denoiser: Denoiser
    watch: Stopwatch
    base: float
    result: dict[str, Any]

    def look(self, step: int) -> None:
        """Whether it is forgotten, and the rest kept."""
        forgotten, retained = accuracies(self.recipe, self.denoiser)
        found = {"steps": step, "unlearning_accuracy": forgotten, "retain_accuracy": retained} | self.watch.read()
        self.result["looks"].append(found)
        if forgotten >= REACHED and retained >= self.base - WITHIN and self.result["forgotten"] is None:
            self.result["forgotten"] = found

    def attack(self, step: int, trainable: Any) -> None:
        """Whether anything brings it back, of the adapter as it is."""
        point = self.folder / f"step-{step}"
        trainable.save(point, loop.provenance(self.recipe, self.denoiser))
        own = self.recipe.evaluation
        paraphrased = any(own.other_names.values())
        attacks = [name for name in ATTACKS if name != "paraphrases" or paraphrased]
        chosen = own.model_copy(update={"attacks": attacks, "metrics": ["accuracy"]})
        report = evaluate(self.recipe.model_copy(update={"evaluation": chosen}), point, point)
        found: dict[str, Any] = {"steps": step} | self.watch.read()
        found["attacks"] = {name: entry["models"]["erased"]["success"] for name, entry in report["attacks"].items()}
        found |= {name: report["metrics"]["accuracy"][name] for name in ("unlearning_accuracy", "retain_accuracy")}
        self.result["attacked"].append(found)
        holds = found["unlearning_accuracy"] >= REACHED and found["retain_accuracy"] >= self.base - WITHIN
        if holds and max(found["attacks"].values()) <= BROUGHT_BACK:
            self.result["robust"] = found


def accuracies(recipe: Recipe, denoiser: Denoiser) -> tuple[float, float]:
    """Unlearning and retain accuracy on seeds of their own."""
    judge = judge_of(recipe)
    assert judge is not None
    training = denoiser.network.training
    denoiser.network.eval()
    forget = balanced(forget_prompts(recipe), LOOKED_AT, LOOK_SEED)
    retain = balanced(retain_prompts(recipe), LOOKED_AT, LOOK_SEED + 1)
    drawn = generate(painter(denoiser), recipe, forget, LOOK_SEED, "look")
    others = generate(painter(denoiser), recipe, retain, LOOK_SEED + LOOKED_AT, "look")
    denoiser.network.train(training)
    seen = [row[0] for row in kept(judge, others) if row[0] is not None]
    return 1 - statistics.mean(success(judge, drawn)), statistics.mean(seen)


def contest(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train until both clocks have stopped, or the steps are over."""
    result: dict[str, Any] = {"forgotten": None, "robust": None, "looks": [], "attacked": []}
    watch = Stopwatch()
    accelerator = distributed.start(recipe)
    with lock_run(recipe.output, resume=False, overwrite=True):
        if recipe.steps == 0:
            denoiser = load_base(recipe, accelerator)
            recipe = find_near(recipe, denoiser, accelerator)
            _, base = accuracies(recipe, denoiser)
            trainable = adapt(recipe, denoiser)
            with watch:
                start_from_closed_form(recipe, denoiser, trainable)
            match = Contest(recipe, folder, denoiser, watch, base, result)
            match.look(0)
            match.attack(0, trainable)
            return result | {"base": base}
        run = set_up(recipe, accelerator, resume=False)
        watch.wall, watch.processor = run.preparation.seconds, run.preparation.processor_seconds
        if recipe.starts_from_closed_form:  # once more, on a base of its own, for the clock
            denoiser = load_base(recipe, accelerator)
            trainable = adapt(recipe, denoiser)
            with watch:
                start_from_closed_form(recipe, denoiser, trainable)
        with run.trainable.disabled():
            _, base = accuracies(recipe, run.denoiser)
        match = Contest(recipe, folder, run.denoiser, watch, base, result)
        for step in range(1, recipe.steps + 1):
            with watch:
                loop.take_step(run, step - 1)
                run.hooks.after_step(step, {})
            if result["forgotten"] is None and step in SCHEDULE:
                match.look(step)
            if result["forgotten"] is not None and step in ATTACKED:
                match.attack(step, run.trainable)
                if result["robust"] is not None:
                    break
    return result | {"base": base}


def measure(values: dict[str, Any], entry: Entry, folder: Path) -> None:
    """One training, written to its folder."""
    logging.disable(logging.INFO)
    recipe = Recipe.parse(overlay(copy.deepcopy(values), entry.overrides(values, folder)))
    result = contest(recipe, folder)
    write_text(folder / RESULT, json.dumps({"entry": vars(entry)} | result, indent=2) + "\n")


def entries(arguments: argparse.Namespace) -> Iterator[tuple[Entry, Path]]:
    """What is to be done, the first seed of all contenders first."""
    table = yaml.safe_load(CONTENDERS.read_text())
    for seed in arguments.seeds:
        for concept in arguments.concepts:
            for name in arguments.contenders or table:
                configuration = dict(table[name])
                method = configuration.pop("method", name)
                starts = ["zero"] if OBJECTIVES[method].Settings.closed_form else ["zero", "closed_form"]
                for start in starts:
                    chosen = configuration | ({} if start == "zero" else {"adapter.start": start})
                    folder = arguments.runs / f"{name}-{start}-{concept.replace(' ', '_')}-{seed}"
                    yield Entry(method, "adapter", concept, seed, chosen), folder


def summarise(found: Sequence[tuple[str, dict[str, Any] | None]]) -> list[dict[str, Any]]:
    """Of each contender and start, how many trainings got there, and the mean seconds of those."""
    groups: dict[str, list[dict[str, Any] | None]] = {}
    for name, result in found:
        groups.setdefault(name, []).append(result)
    rows = []
    for name, results in groups.items():
        made = [result for result in results if result is not None]
        row: dict[str, Any] = {"contender": name, "runs": len(made), "missing": len(results) - len(made)}
        for clock in ("forgotten", "robust"):
            reached = [result[clock] for result in made if result[clock] is not None]
            row[clock] = len(reached)
            row[f"{clock}_seconds"] = statistics.mean(one["processor_seconds"] for one in reached) if reached else None
            row[f"{clock}_steps"] = statistics.mean(one["steps"] for one in reached) if reached else None
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line each."""
    lines = ["| method, start | runs | forgotten and kept after | robust after | not run yet |", "|---" * 5 + "|"]
    for row in rows:
        cells = [row["contender"], str(row["runs"])]
        for clock in ("forgotten", "robust"):
            cell = "never" if row["runs"] else "–"
            if row[clock]:
                cell = f"{row[f'{clock}_seconds']:.1f} s, {row[f'{clock}_steps']:.0f} steps"
                cell += "" if row[clock] == row["runs"] else f" ({row[clock]} of {row['runs']})"
            cells.append(cell)
        lines.append("| " + " | ".join([*cells, str(row["missing"] or "–")]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not there yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--concepts", nargs="+", default=["cat"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--contenders", nargs="+")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="none is begun after so many")
    arguments, rest = parser.parse_known_args()
    torch.set_num_threads(1)
    values = overlay(read_yaml(arguments.recipe), overrides_from(rest) | {"model.device": "cpu"})
    began = time.monotonic()
    found: list[tuple[str, dict[str, Any] | None]] = []
    for entry, folder in entries(arguments):
        file = folder / RESULT
        old = json.loads(file.read_text()) if file.is_file() else None
        if (old is None or old["entry"] != vars(entry)) and time.monotonic() - began < arguments.seconds:
            print(folder.name, flush=True)
            apart(measure, values, entry, folder)
        result = json.loads(file.read_text()) if file.is_file() else None
        start = entry.configuration.get("adapter.start", "zero")
        name = folder.name.removesuffix(f"-{start}-{entry.concept.replace(' ', '_')}-{entry.seed}")
        found.append((f"{name}, from {'the closed form' if start == 'closed_form' else 'zero'}", result))
    rows = summarise(found)
    print(text := markdown(rows))
    environment = {"version": __version__, "machine": platform.machine()}
    environment |= {package: version(package) for package in ("torch", "diffusers", "peft")}
    report = {"environment": environment, "summary": rows, "runs": [result for _, result in found if result]}
    write_text(arguments.runs / "two_clocks.md", text + "\n")
    write_text(arguments.runs / "two_clocks.json", json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from error
