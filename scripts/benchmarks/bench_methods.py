"""Erasure methods head to head: the same data, loop, budget and judge, on an adapter and on all weights.

    export OMP_NUM_THREADS=1
    RUN="python scripts/benchmarks/bench_methods.py recipes/demo_concept.yaml --runs runs/methods"
    $RUN --tune cat
    $RUN --concepts cat clock car --seeds 0 1 2

The first command tries every configuration of bench_methods.yaml on one concept and keeps the best of each method, the
second trains and evaluates those. Each training is a folder under --runs: finished ones are read, not
repeated. Several shells can share the work by --methods or --seeds. Times are the method's own, on a CPU: what it
computes beforehand, and its steps; drawing the sets and looking at pictures is not counted. Prints a Markdown table,
and writes it, a plot of the front and a JSON file into --runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import platform
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import methods_table
import torch
import yaml

from erasediff_lora import __version__
from erasediff_lora.cli.recipe_flags import overrides_from
from erasediff_lora.data.prompts import balanced
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.evaluate import evaluate
from erasediff_lora.evaluation.judging import judge_of
from erasediff_lora.evaluation.metrics.accuracy import success
from erasediff_lora.evaluation.metrics.strength_sweep import SweepSettings
from erasediff_lora.evaluation.pictures import forget_prompts, generate, painter
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.yaml_io import overlay, read_yaml
from erasediff_lora.storage.files import write_text
from erasediff_lora.storage.run_folder import lock_run
from erasediff_lora.training import distributed, loop
from erasediff_lora.training.setup import Run, set_up

CONFIGURATIONS = Path(__file__).with_suffix(".yaml")
RESULT = "bench.json"
SCHEDULE = [5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300]
"""Steps after which the unlearning accuracy is looked at, until it is reached."""
REACHED = 0.95
TUNING_STEPS = 60
RETAIN_TIE = 0.02
"""Retain accuracies closer than this are equal: the difference of two pictures of the hundred of a tuning run."""
LOOK_SEED = 900_000
OWN, EQUAL = "own_budget", "equal_time"


@dataclass(frozen=True)
class Entry:
    """One training.

    Attributes:
        method: Name of the objective.
        mode: 'adapter' or 'full'.
        concept: What is erased.
        seed: Of the training.
        configuration: Overrides of the recipe.
    """

    method: str
    mode: str
    concept: str
    seed: int
    configuration: dict[str, Any] = field(default_factory=dict)

    def overrides(self, values: dict[str, Any], folder: Path) -> dict[str, Any]:
        """All that differs from the recipe: the concept, its anchor (the next one), and the method."""
        names = [_name(concept) for concept in values["forget"]["concepts"]] + values["retain"]["concepts"]
        anchor = names[(names.index(self.concept) + 1) % len(names)]
        kind: dict[str, Any] = {"objective": {"name": self.method}} if self.method != "erasediff" else {}
        if self.mode == "full":
            kind["adapter"] = {"kind": "none"}
        return kind | {
            "forget.concepts": [{"name": self.concept, "anchor": anchor}],
            "retain.concepts": [name for name in names if name != self.concept],
            "evaluation.paraphrases.names": {},
            "training.seed": self.seed,
            "output": str(folder),
            **self.configuration,
        }


def _name(concept: Any) -> str:
    return concept if isinstance(concept, str) else concept["name"]


class Stopwatch:
    """Wall-clock and processor seconds; on one thread of an idle machine they are the same."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *exception: object) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.processor += time.process_time() - self._began[1]

    def read(self) -> dict[str, float]:
        return {"seconds": round(self.wall, 2), "processor_seconds": round(self.processor, 2)}


def erase(recipe: Recipe, equal_seconds: float | None) -> dict[str, Any]:
    """Train; save what there is after the recipe's steps, and after `equal_seconds` processor seconds.

    Returns:
        Times, memory, and when the unlearning accuracy was reached first.
    """
    watch, first = Stopwatch(), None
    points = {OWN} if equal_seconds is None else {OWN, EQUAL}
    with lock_run(recipe.output, resume=False, overwrite=True):
        run = set_up(recipe, distributed.start(recipe), resume=False)
        watch.wall, watch.processor = run.preparation.seconds, run.preparation.processor_seconds
        result: dict[str, Any] = {"preparation": watch.read()}
        step = 0
        while not points <= result.keys():
            with watch:
                loop.take_step(run, step)
            step += 1
            if first is None and step in SCHEDULE and unlearning_accuracy(run) >= REACHED:
                first = {"steps": step} | watch.read()
            due = {OWN: step == recipe.training.steps, EQUAL: watch.processor >= (equal_seconds or 0)}
            for point in sorted(points - result.keys()):
                if due[point]:
                    run.trainable.save(recipe.output / point, loop.provenance(recipe, run.denoiser))
                    result[point] = {"steps": step} | watch.read()
    parameters = run.trainable.parameters
    states = [t for s in run.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return result | {
        "reached": first,
        "trained_parameters": sum(p.numel() for p in parameters),
        "gradient_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "optimizer_bytes": sum(t.numel() * t.element_size() for t in states),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def unlearning_accuracy(run: Run) -> float:
    """Share of pictures of the forget prompts in which the judge does not see the concept, on seeds of their own."""
    recipe = run.recipe
    judge = judge_of(recipe)
    assert judge is not None
    prompts = balanced(forget_prompts(recipe), recipe.evaluation.settings(SweepSettings).samples, LOOK_SEED)
    run.denoiser.network.eval()
    drawn = generate(painter(run.denoiser), recipe, prompts, LOOK_SEED, "look")
    run.denoiser.network.train()
    return 1 - sum(success(judge, drawn)) / len(drawn)


def measure(values: dict[str, Any], entry: Entry, folder: Path, equal_seconds: float | None, quick: bool) -> None:
    """One training with its evaluations, written to the folder."""
    logging.disable(logging.INFO)
    overrides = entry.overrides(values, folder) | ({"training.steps": TUNING_STEPS} if quick else {})
    recipe = Recipe.parse(overlay(copy.deepcopy(values), overrides))
    result = {"entry": vars(entry)} | erase(recipe, equal_seconds)
    for point in (OWN, EQUAL):
        if point in result:
            attacks = ["inversion"] if point == OWN and not quick else []
            chosen = recipe.evaluation.model_copy(update={"attacks": attacks, "metrics": ["accuracy", "distances"]})
            found = evaluate(recipe.model_copy(update={"evaluation": chosen}), folder / point, folder / point)
            result[point] |= methods_table.numbers(found)
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")


def apart(function: Any, *arguments: Any) -> None:
    """Call in a process of its own, so that its peak memory is its own."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        print(f"failed with status {process.exitcode}; the next run of this command tries it again", flush=True)


def result_of(folder: Path) -> dict[str, Any] | None:
    file = folder / RESULT
    return json.loads(file.read_text()) if file.is_file() else None


def finished(folder: Path, entry: Entry) -> bool:
    """Whether the folder holds this training, rather than none or one of another configuration."""
    result = result_of(folder)
    return result is not None and result["entry"] == vars(entry)


def tuned(runs: Path, method: str, mode: str, configured: int) -> int:
    """The best configuration: of those that forget, the fastest that retains as much as any. Untuned, the first."""
    rows = {}
    for number in range(configured):
        if (row := result_of(runs / "tuning" / f"{method}-{mode}-{number}")) is not None:
            rows[number] = row

    def forgotten(number: int) -> float:
        return min(rows[number][OWN]["unlearning_accuracy"], REACHED)

    def retained(number: int) -> float:
        return rows[number][OWN]["retain_accuracy"]

    def seconds(number: int) -> tuple[float, float]:
        reached = rows[number]["reached"]
        return (reached["processor_seconds"] if reached else float("inf"), -retained(number))

    most = max(rows, key=lambda number: (forgotten(number), retained(number)), default=0)
    equal = [n for n in rows if forgotten(n) == forgotten(most) and retained(most) - retained(n) < RETAIN_TIE]
    return min(equal, key=seconds, default=0)


def entries(arguments: argparse.Namespace) -> Iterator[tuple[Entry, Path]]:
    """What is to be done, EraseDiff's adapter first: its time is everyone's."""
    table = yaml.safe_load(CONFIGURATIONS.read_text())
    methods = arguments.methods or table["adapter"]
    wanted = [(mode, method) for method in methods for mode in arguments.modes]
    if arguments.tune:
        for mode, method in wanted:
            for number, configuration in enumerate(table[mode][method]):
                entry = Entry(method, mode, arguments.tune, 0, configuration)
                yield entry, arguments.runs / "tuning" / f"{method}-{mode}-{number}"
        return
    for mode, method in wanted:
        configurations = table[mode][method]
        configuration = configurations[tuned(arguments.tuned_in or arguments.runs, method, mode, len(configurations))]
        for seed in arguments.seeds:
            for concept in arguments.concepts:
                name = f"{method}-{mode}-{concept.replace(' ', '_')}-{seed}"
                yield Entry(method, mode, concept, seed, configuration), arguments.runs / name


def main() -> None:
    """Run what is not there yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--tune", metavar="CONCEPT", help="try the configurations on this concept")
    parser.add_argument("--tuned_in", type=Path, metavar="RUNS", help="where --tune was run, if not in --runs")
    parser.add_argument("--concepts", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--modes", nargs="+", default=["adapter", "full"], choices=["adapter", "full"])
    arguments, rest = parser.parse_known_args()
    torch.set_num_threads(1)
    values = overlay(read_yaml(arguments.recipe), overrides_from(rest) | {"model.device": "cpu"})
    for entry, folder in entries(arguments):
        if finished(folder, entry):
            continue
        first = arguments.runs / f"erasediff-adapter-{entry.concept.replace(' ', '_')}-{entry.seed}"
        ours = result_of(first)
        equal = None if ours is None or arguments.tune or folder == first else ours[OWN]["processor_seconds"]
        print(f"{folder.name} {entry.configuration}", flush=True)
        apart(measure, values, entry, folder, equal, bool(arguments.tune))
    environment = {
        "version": __version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        **{package: version(package) for package in ("torch", "diffusers", "peft")},
    }
    methods_table.write(arguments.runs, RESULT, environment)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from error
