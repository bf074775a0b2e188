"""What an evaluation's and the robust preset's work costs one way and the other, in seconds of the processor.

    export OMP_NUM_THREADS=1
    erasediff-lora demo --concept cat --training.steps 40 --output runs/bench
    python scripts/benchmarks/bench_evaluation.py runs/bench

*Drawing*: pictures of the forget prompts with the adapter in layers of its own, as diffusers loads it, and merged into
the weights for the time being, as an evaluation draws them. *Searching*: conditions of several concepts, as the robust
preset searches for them, and restarts of concept inversion, one after the other and side by side. Both ways by turns,
--rounds times; the least of each counts, since others may be at work on the machine. With --before CHECKOUT also whole
evaluations by another version of the program and by this one: of the run as its training ends with it, from an empty
cache, and a quick look afterwards. Prints a Markdown table and writes evaluation.json under --work.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from erasediff_lora import __version__, denoisers
from erasediff_lora.data import sets
from erasediff_lora.denoisers.textual_inversion import Search, invert
from erasediff_lora.evaluation.candidates import Candidate, load_candidates
from erasediff_lora.evaluation.judging import judge_of
from erasediff_lora.evaluation.metrics.accuracy import success
from erasediff_lora.evaluation.pictures import Drawn, forget_prompts, generate, painter
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.yaml_io import overlay, read_yaml
from erasediff_lora.storage.run_folder import RECIPE_FILE
from erasediff_lora.training.adversarial_conditions import AdversarialSet

CONCEPTS = ["cat", "car", "clock"]
STEPS = 3
"""Of a search, in each round."""


@dataclass
class Ways:
    """Two ways to the same result.

    Attributes:
        work: What is done.
        before: The one way.
        after: The other.
        difference: How far the results lie apart.
    """

    work: str
    before: Callable[[], Any]
    after: Callable[[], Any]
    difference: Callable[[Any, Any], dict[str, Any]]

    def measure(self, rounds: int) -> dict[str, Any]:
        """By turns; the first round only warms up."""
        seconds: dict[str, list[float]] = {"before": [], "after": []}
        found = {}
        for _ in range(rounds + 1):
            for name, way in (("before", self.before), ("after", self.after)):
                began = time.process_time()
                found[name] = way()
                seconds[name].append(time.process_time() - began)
        least = {name: min(taken[1:]) for name, taken in seconds.items()}
        return {"work": self.work, **least, **self.difference(found["before"], found["after"])}


def drawing(run: Path, recipe: Recipe, count: int) -> Ways:
    """Pictures of the erased model."""
    candidate = load_candidates(recipe, run / "pytorch_lora_weights.safetensors").erased
    judge = judge_of(recipe)
    assert judge is not None
    every = forget_prompts(recipe)
    prompts = [every[row % len(every)] for row in range(count)]

    def draw(candidate: Candidate, *, merged: bool) -> list[Drawn]:
        with candidate.active() if merged else candidate.in_layers() as denoiser:
            return generate(painter(denoiser), recipe, prompts, recipe.evaluation.seed, "pictures")

    def difference(before: Sequence[Drawn], after: Sequence[Drawn]) -> dict[str, Any]:
        pixels = [np.stack([np.asarray(item.image, dtype=int) for item in drawn]) for drawn in (before, after)]
        apart = np.abs(pixels[0] - pixels[1])
        return {
            "pictures": len(before),
            "largest_difference": int(apart.max()),
            "share_of_values_that_differ": float((apart > 0).mean()),
            "judged_alike": success(judge, before) == success(judge, after),
        }

    return Ways(
        f"draw {count} pictures with the adapter",
        lambda: draw(candidate, merged=False),
        lambda: draw(candidate, merged=True),
        difference,
    )


def searching(recipe: Recipe, concepts: Sequence[str], size: int, at_once: int | None, work: str) -> Ways:
    """Searches of so many pictures each, for conditions of the concepts; of a single concept, three restarts."""
    denoiser = denoisers.load(recipe.model)
    (place,) = AdversarialSet(recipe, denoiser, sets.prepare(recipe, denoiser, "forget")).places.values()
    options: dict[str, Any] = {"steps": STEPS, "learning_rate": 0.15}
    tries = [(name, restart) for name in concepts for restart in range(1 if len(concepts) > 1 else 3)]

    def searches() -> list[Search]:
        return [
            Search(place.pictures[name].noised(denoiser, size, seed), place.space.start([], 1, seed, seed))
            for name, seed in tries
        ]

    def one_by_one() -> Any:
        return [invert(denoiser, place.space, [search], **options)[0] for search in searches()]

    def difference(before: Any, after: Any) -> dict[str, Any]:
        pairs = zip(before, after, strict=True)
        return {
            "steps": STEPS,
            "largest_difference": max(float((one - other).abs().max()) for (one, _), (other, _) in pairs),
            "largest_value": max(float(one.abs().max()) for one, _ in before),
        }

    def side_by_side() -> Any:
        return invert(denoiser, place.space, searches(), at_once=at_once, **options)

    return Ways(work, one_by_one, side_by_side, difference)


def evaluations(run: Path, before: Path, work: Path) -> Iterator[dict[str, Any]]:
    """Whole evaluations by the program in that checkout and by this one, start-up included."""
    taken: dict[str, dict[str, float]] = {"evaluate, from an empty cache": {}, "evaluate --quick, afterwards": {}}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for name, checkout in (("before", before), ("after", Path(__file__).parent.parent.parent)):
            for row, flags in zip(taken.values(), ([], ["--quick"]), strict=True):
                own = ["--output", f"{folder}/{name}", "--cache", f"{folder}/{name}-cache", *flags]
                command = [sys.executable, "-m", "erasediff_lora", "evaluate", str(run), "--recipe", str(run), *own]
                began = _of_children()
                subprocess.run(command, env=os.environ | {"PYTHONPATH": str(checkout)}, cwd=work, check=True)
                row[name] = _of_children() - began
    yield from ({"work": work, **row} for work, row in taken.items())


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of the results."""
    lines = ["| work | before | now | ratio | largest difference |", "|---|---|---|---|---|"]
    for row in rows:
        apart = row.get("largest_difference", 0.0)
        told = f"{apart} of 255" if "pictures" in row else f"{apart:.0e} of {row['largest_value']:.2f}" if apart else ""
        ratio = f"{row['after'] / row['before']:.2f}"
        lines.append(f"| {row['work']} | {row['before']:.2f} s | {row['after']:.2f} s | {ratio} | {told} |")
    return "\n".join(lines)


def write(work: Path, rows: Sequence[dict[str, Any]]) -> None:
    """All rows so far, and what they were measured on."""
    print(table(rows), flush=True)
    device = f"CPU, {torch.get_num_threads()} thread(s)"
    environment = {"version": __version__, "torch": torch.__version__, "device": device}
    (work / "evaluation.json").write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of the demo recipe")
    parser.add_argument("--work", type=Path, default=Path("build/evaluation"))
    parser.add_argument("--before", type=Path, help="checkout of the version that whole evaluations are compared with")
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in ("run", "work", "before"):
        if (path := getattr(arguments, name)) is not None:
            setattr(arguments, name, path.resolve())
    values = read_yaml(arguments.run / RECIPE_FILE)
    recipe = Recipe.parse(values)
    several = Recipe.parse(
        overlay(
            values,
            {
                "forget.concepts": [{"name": name, "anchor": "heart"} for name in CONCEPTS],
                "retain.concepts": [name for name in recipe.retain.concepts if name not in CONCEPTS],
                "forget.count": 66,
                "evaluation.paraphrases.names": {},
            },
        )
    )
    own, at_once = recipe.forget.concepts[0].name, recipe.training.batch_size
    rows: list[dict[str, Any]] = []
    for ways in (
        drawing(arguments.run, recipe, arguments.pictures),
        searching(several, CONCEPTS, 8, at_once, f"search for {len(CONCEPTS)} concepts, 8 pictures each"),
        searching(recipe, [own], 16, None, "search from 3 starts, 16 pictures each"),
    ):
        rows.append(ways.measure(arguments.rounds))
        write(arguments.work, rows)
    for row in evaluations(arguments.run, arguments.before, arguments.work) if arguments.before else ():
        rows.append(row)
        write(arguments.work, rows)


if __name__ == "__main__":
    main()
