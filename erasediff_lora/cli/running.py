"""The verbs that run a recipe: `erasediff-lora VERB RECIPE [--section.field VALUE …]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora import demo
from erasediff_lora.cli.evaluation import evaluate_adapter
from erasediff_lora.cli.losses import lines_of_folder
from erasediff_lora.cli.recipe_flags import FIELDS, load_recipe
from erasediff_lora.cli.verb import Verb, user_path
from erasediff_lora.errors import Problem, UserError

if TYPE_CHECKING:
    from erasediff_lora.recipe import Recipe

DEMO_RECIPE = Path(demo.__file__).parent / "recipe.yaml"


def _arguments(*, demo: bool = False, trains: bool = False) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        if demo:
            what = "what to erase: a concept or a style of the demo model; may stand first without the flag [cat]"
            parser.add_argument("--concept", help=what)
        else:
            parser.add_argument(
                "recipe", type=user_path, help="recipe file, folder of a run, or name of a shipped recipe"
            )
        if trains:
            parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output")
            parser.add_argument("--overwrite", action="store_true", help="replace a run in the output folder")

    return add


def _recipe(parsed: argparse.Namespace, rest: Sequence[str]) -> Recipe:
    if parsed.verb == "demo":
        concept, rest = _one_concept(parsed, rest)
        return load_recipe(DEMO_RECIPE, rest, demo_overrides(concept))
    return load_recipe(parsed.recipe, rest)


def _one_concept(parsed: argparse.Namespace, rest: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The concept, and the other words. argparse would take the value of a recipe's flag for a positional."""
    first = [word for word in rest[:1] if not word.startswith("-")]
    given = {name for name in (*first, parsed.concept) if name is not None}
    if len(given) > 1:
        raise UserError(Problem("--concept", parsed.concept, f"is not {first[0]!r}.", "Name one concept."))
    return given.pop() if given else "cat", rest[len(first) :]


def demo_overrides(concept: str) -> dict[str, Any]:
    """The demo recipe turned to another concept or style; its anchor is the next one in the list.

    Raises:
        UserError: If the demo model does not know it.
    """
    from erasediff_lora.recipe.draft import of_demo

    tables = of_demo([concept], "--concept")
    overrides = {f"{table}.{field}": value for table, values in tables.items() for field, value in values.items()}
    return overrides | {"output": f"runs/demo-{concept}"}


def _prepare(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora.storage.ownership import claimed

    recipe = _recipe(parsed, rest)
    if recipe.steps == 0:
        print("nothing to prepare: the adapter is made from the prompts alone, without pictures")
        return
    with claimed(recipe.output, "run"):
        _prepare_sets(recipe)


def _prepare_sets(recipe: Recipe) -> None:
    from erasediff_lora import denoisers
    from erasediff_lora.data import sets
    from erasediff_lora.data.near import choose_near
    from erasediff_lora.data.set_report import write_data_report
    from erasediff_lora.storage.run_folder import SET_SHEETS

    denoiser = denoisers.load(recipe.model)
    recipe = choose_near(recipe, denoiser, recipe.output)
    sheets = {kind: recipe.output / name for kind, name in SET_SHEETS.items()}
    forget = sets.prepare(recipe, denoiser, "forget", sheet=sheets["forget"])
    retain = sets.prepare(recipe, denoiser, "retain", sheet=sheets["retain"])
    write_data_report(recipe.output, forget.report, retain.report)
    for kind, data in {"forget": forget, "retain": retain}.items():
        print(f"{kind} set: {len(data.captions)} pictures, {len(data.prompts)} prompts; see {sheets[kind]}")
        print(data.report.table())


def _train(parsed: argparse.Namespace, rest: list[str]) -> None:
    from accelerate import PartialState

    from erasediff_lora.machine.progress import whole
    from erasediff_lora.memory.room import require_room
    from erasediff_lora.storage.run_folder import RECIPE_FILE
    from erasediff_lora.timing.stages import work
    from erasediff_lora.training.loop import train
    from erasediff_lora.training.trackers import tell_evaluation

    recipe = _recipe(parsed, rest)
    micro_batches = require_room(recipe)
    with whole.of(work(recipe)):
        began = time.perf_counter()
        folder = train(recipe, resume=parsed.resume, overwrite=parsed.overwrite, micro_batches=micro_batches)
        if PartialState().is_main_process:
            print(f"erasing took {time.perf_counter() - began:.0f} s")
            for line in lines_of_folder(folder):
                print(line)
            recipe = load_recipe(folder / RECIPE_FILE, [])  # with what the run found of its own
            tell_evaluation(recipe, evaluate_adapter(recipe, folder))


VERBS = {
    "demo": Verb(
        "erase a concept from the embedded model, and show before and after",
        _arguments(demo=True, trains=True),
        _train,
        FIELDS,
    ),
    "prepare": Verb(
        "draw or read the forget and retain sets and encode them into the cache",
        _arguments(),
        _prepare,
        FIELDS,
    ),
    "train": Verb("train an erasure adapter, then evaluate it", _arguments(trains=True), _train, FIELDS),
}
