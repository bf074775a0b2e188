"""The verbs that measure: `evaluate` and `compare`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora.cli.recipe_flags import FIELDS, load_recipe
from erasediff_lora.cli.verb import Verb, require_none, user_path
from erasediff_lora.errors import Problem, UserError

if TYPE_CHECKING:
    from erasediff_lora.recipe import Recipe

ANSWERS = {True: "yes", False: "NO", None: "not decided"}


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        type=user_path,
        help="folder of a run, recipe of one (file or shipped name), an adapter, or a model that another eraser made:"
        " diffusers folder, hub id, single file, file of the network",
    )
    parser.add_argument("--recipe", type=user_path, help="recipe to evaluate by; what is no run needs one")
    parser.add_argument("--name", help="what this evaluation is called: RUN/evaluations/DATE-NAME")
    parser.add_argument("--force", action="store_true", help="judge an adapter by a recipe that erases something else")
    parser.add_argument(
        "--prompts", nargs="+", action="extend", metavar="FILE", help="draw the prompts of these files instead"
    )
    parser.add_argument(
        "--columns", nargs="+", action="extend", metavar="ROLE=COLUMN", help="prompt=adv_prompt seed=sd_seed, say"
    )
    parser.add_argument(
        "--use", choices=("forget", "retain", "attack"), help="what the prompts are, where no column says so"
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="measure as a well-known benchmark does; see docs/benchmarks.md"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a few metrics on fewer pictures")
    how.add_argument("--full", action="store_true", help="every metric and attack that the recipe has the means for")


def _evaluate(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora.recipe import shipped
    from erasediff_lora.storage.run_folder import RECIPE_FILE, WEIGHTS_FILE
    from erasediff_lora.training.trackers import tell_evaluation

    target: Path = parsed.target
    rest = [*rest, *_prompts(parsed), *(["--evaluation.protocol", parsed.protocol] if parsed.protocol else [])]
    given = {word.removeprefix("--").partition("=")[0] for word in rest}
    is_recipe = target.suffix in {".yaml", ".yml"} or shipped.is_named(target)
    is_run = (target / RECIPE_FILE).is_file()
    if parsed.recipe is not None:
        recipe = load_recipe(parsed.recipe, rest, {"output": str(target if is_run else _beside(target))})
    elif is_recipe or is_run:
        recipe = load_recipe(target, rest)
    else:
        raise UserError(
            Problem(
                "--recipe",
                None,
                f"is needed: {target} is no run." if target.exists() else f"is needed, and {target} is not there.",
                "Add --recipe RECIPE: it says which base, which prompts and which judge.",
            )
        )
    preset: dict[str, Any] = {}
    if parsed.quick:
        preset = recipe.evaluation.quick(recipe.sampling.batch_size)
    elif parsed.full:
        preset = recipe.evaluation.full()
    preset = {name: value for name, value in preset.items() if f"evaluation.{name}" not in given}
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=preset)})
    adapter = recipe.output if is_recipe else target
    trained = [*adapter.glob("*.safetensors"), *adapter.glob(f"*/{WEIGHTS_FILE}")]
    if (is_recipe or is_run) and not trained:
        raise UserError(Problem("run", str(adapter), "holds no adapter.", "Train first: erasediff-lora train RECIPE."))
    name = parsed.name or ("quick" if parsed.quick else "full" if parsed.full else "evaluation")
    tell_evaluation(recipe, evaluate_adapter(recipe, adapter, name=name, force=parsed.force))


def _prompts(parsed: argparse.Namespace) -> list[str]:
    """The recipe's flag that stands for the shorter ones.

    Raises:
        UserError: If one is not understood, or says how to read files and there is none.
    """
    if parsed.prompts is None:
        for name in ("columns", "use"):
            if (value := getattr(parsed, name)) is not None:
                raise UserError(Problem(f"--{name}", value, "is about files of prompts.", "Add --prompts FILE."))
        return []
    columns: dict[str, Any] = {}
    for word in parsed.columns or []:
        role, separator, column = word.partition("=")
        if not separator or not column:
            raise UserError(Problem("--columns", word, "is no ROLE=COLUMN.", "Write prompt=NAME."))
        columns.setdefault(role, []).append(column)
    alone = {role: names[0] if len(names) == 1 else names for role, names in columns.items()}
    files = [{"file": file, "use": parsed.use, "columns": alone} for file in parsed.prompts]
    return ["--evaluation.prompts", json.dumps(files, ensure_ascii=False)]


def _beside(target: Path) -> Path:
    """Where an evaluation of what is no run goes: beside it, never into it; of a hub id where the command runs."""
    place = target.absolute() if target.exists() else Path(target.name)
    place = place.resolve() if place.name == ".." else place
    if not place.name:
        raise UserError(Problem("target", str(target), "is the root of a disk.", "Give an adapter or a model."))
    return place.with_name(f"{place.stem if target.is_file() else place.name}-evaluation")


def evaluate_adapter(recipe: Recipe, adapter: Path, *, name: str = "evaluation", force: bool = False) -> dict[str, Any]:
    """Evaluate into the recipe's output folder, print the verdict, and return the numbers."""
    from erasediff_lora.evaluation.evaluate import evaluate
    from erasediff_lora.evaluation.results import asked, measured
    from erasediff_lora.storage.run_folder import EVALUATION_FILE, EVALUATIONS, GRID_FILE, REPORT_FILE, read_evaluation

    result = evaluate(recipe, adapter, recipe.output, name=name, force=force)
    file = result["adapter"]
    print(f"adapter    {file['file']} ({file['bytes'] / 1024:.0f} KiB)")
    for claim in result["verdict"]:
        print(f"{claim['claim']:10} {ANSWERS[claim['holds']]:11}  {claim['text']}")
    for metric, found in measured(result):
        lines: Sequence[tuple[str, str]] = asked(metric, metric.summary, found, result["concepts"], otherwise=())
        for word, text in lines:
            print(f"{word:10} {text}")
    folder = recipe.output
    if read_evaluation(folder).get("name") != result["name"]:
        print(f"unchanged  {folder / EVALUATION_FILE}, which measures more than this one")
        folder = folder / EVALUATIONS / result["name"]
    print(f"pictures   {folder / GRID_FILE}")
    print(f"report     {folder / REPORT_FILE}")
    print(f"numbers    {folder / EVALUATION_FILE}")
    return result


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="folder with an evaluation.json")
    parser.add_argument("--output", type=user_path, default=Path("comparison.html"), help="the page [comparison.html]")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")


def _compare(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora.evaluation.report.comparison import compare

    require_none(rest)
    print(compare(parsed.runs, parsed.output, overwrite=parsed.overwrite))
    print(f"\nreport     {parsed.output}")


VERBS = {
    "evaluate": Verb("measure an adapter, attack it, and write the report", _evaluate_arguments, _evaluate, FIELDS),
    "compare": Verb("lay the evaluations of several runs side by side", _compare_arguments, _compare),
}
