"""The verbs that run a recipe: `erasediff-lora VERB RECIPE [--section.field VALUE …]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from erasediff_lora import demo
from erasediff_lora.cli.verb import Verb
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe import Recipe, flags
from erasediff_lora.run_folder import EVALUATION_FILE, GRID_FILE, RECIPE_FILE, SET_SHEETS

DEMO_RECIPE = Path(demo.__file__).parent / "recipe.yaml"


def _arguments(*, demo: bool = False, trains: bool = False) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        if demo:
            parser.add_argument(
                "--concept", default="cat", help="what to erase: a concept or a style of the demo model"
            )
        else:
            parser.add_argument("recipe", type=Path, help="recipe file, or the folder of a run")
        if trains:
            parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output")
            parser.add_argument("--overwrite", action="store_true", help="replace a run in the output folder")

    return add


def _field_help() -> str:
    return "\n".join(f"  --{name:34} {description} [{default}]" for name, description, default in flags())


def _recipe(parsed: argparse.Namespace, rest: Sequence[str]) -> Recipe:
    overrides, problems = _overrides(rest)
    try:
        if parsed.verb == "demo":
            recipe = Recipe.load(DEMO_RECIPE, demo_overrides(parsed.concept) | overrides)
        elif parsed.recipe.is_dir():
            recipe = Recipe.load(parsed.recipe / RECIPE_FILE, {"output": str(parsed.recipe)} | overrides)
        else:
            recipe = Recipe.load(parsed.recipe, overrides)
    except UserError as error:
        raise UserError(*problems, *error.problems) from None
    if problems:
        raise UserError(*problems)
    return recipe


def _overrides(rest: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """The values of `--a.b VALUE` and `--a.b=VALUE`, and what is wrong with the rest."""
    known = [name for name, _, _ in flags()]
    sections = {name.rpartition(".")[0] for name in known} - {""}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    words = list(rest)
    while words:
        word = words.pop(0)
        name, separator, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            problems.append(Problem("argument", word, "is not expected here.", "Flags are --section.field VALUE."))
            continue
        is_open_table = any(name.startswith(table + ".") for table in ("forget.placeholders", "retain.placeholders"))
        if name not in known and name not in sections and not is_open_table:
            problems.append(Problem("argument", f"--{name}", "is no field of the recipe.", nearest(name, known)))
            if not separator and words and not words[0].startswith("--"):
                words.pop(0)
            continue
        if not separator:
            if not words:
                problems.append(Problem("argument", f"--{name}", "has no value.", f"Write --{name} VALUE."))
                continue
            text = words.pop(0)
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(Problem("argument", f"--{name}", f"has an unreadable value {text!r}.", "Quote it as YAML."))
    return values, problems


def overrides_from(arguments: Sequence[str]) -> dict[str, Any]:
    """The recipe fields that flags set.

    Raises:
        UserError: If a flag is unknown or has no value.
    """
    values, problems = _overrides(arguments)
    if problems:
        raise UserError(*problems)
    return values


def demo_overrides(concept: str) -> dict[str, Any]:
    """The demo recipe turned to another concept or style; its anchor is the next one in the list.

    Raises:
        UserError: If the demo model does not know it.
    """
    if concept in demo.CONCEPTS:
        mine, others, name, templates = demo.CONCEPTS, demo.STYLES, "style", demo.CONCEPT_TEMPLATES
    elif concept in demo.STYLES:
        mine, others, name, templates = demo.STYLES, demo.CONCEPTS, "object", demo.STYLE_TEMPLATES
    else:
        raise UserError(
            Problem(
                "--concept", concept, "the demo model does not know it.", nearest(concept, demo.CONCEPTS + demo.STYLES)
            )
        )
    data = {"templates": templates, "placeholders": {name: others}}
    overrides: dict[str, Any] = {f"forget.{key}": value for key, value in data.items()}
    overrides |= {f"retain.{key}": value for key, value in data.items()}
    return overrides | {
        "forget.concepts": [{"name": concept, "anchor": mine[(mine.index(concept) + 1) % len(mine)]}],
        "retain.concepts": [other for other in mine if other != concept],
        "output": f"runs/demo-{concept}",
    }


def _prepare(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora import denoisers
    from erasediff_lora.data import sets

    recipe = _recipe(parsed, rest)
    denoiser = denoisers.load(recipe.model)
    for kind in ("forget", "retain"):
        sheet = recipe.output / SET_SHEETS[kind]
        encoded = sets.prepare(recipe, denoiser, kind, sheet=sheet)
        print(f"{kind} set: {len(encoded.latents)} pictures, {len(encoded.prompts)} prompts; see {sheet}")


def _train(parsed: argparse.Namespace, rest: list[str]) -> None:
    from accelerate import PartialState

    from erasediff_lora.train import train

    recipe = _recipe(parsed, rest)
    began = time.perf_counter()
    folder = train(recipe, resume=parsed.resume, overwrite=parsed.overwrite)
    if PartialState().is_main_process:
        print(f"erasing took {time.perf_counter() - began:.0f} s")
        _evaluate_folder(recipe, folder)


def _evaluate(parsed: argparse.Namespace, rest: list[str]) -> None:
    recipe = _recipe(parsed, rest)
    _evaluate_folder(recipe, recipe.output)


def _evaluate_folder(recipe: Recipe, folder: Path) -> None:
    from erasediff_lora.adapter.formats.diffusers import FILE
    from erasediff_lora.evaluation.quick import evaluate

    result = evaluate(recipe, folder)
    adapter = folder / FILE
    print(f"adapter    {adapter} ({adapter.stat().st_size / 1024:.0f} KiB)")
    if recipe.evaluation.judge:
        print(
            f"forgotten  {', '.join(result['concepts'])}: not recognised in {result['unlearning_accuracy']:.1%} of"
            f" {result['forget_samples']} pictures (base: {result['unlearning_accuracy_base']:.1%})"
        )
        for concept in result["concepts"]:
            became = result["per_concept"][concept]["became"]
            print(f"became     {concept}: " + ", ".join(f"{label} {share:.0%}" for label, share in became.items()))
        print(
            f"retained   recognised in {result['retain_accuracy']:.1%} of {result['retain_samples']} pictures"
            f" (base: {result['retain_accuracy_base']:.1%})"
        )
    print(f"pictures   {folder / GRID_FILE}")
    print(f"numbers    {folder / EVALUATION_FILE}")


_EPILOG = "recipe fields, settable as --NAME VALUE (values are YAML):\n" + _field_help()
VERBS = {
    "demo": Verb(
        "erase a concept from the embedded model, and show before and after",
        _arguments(demo=True, trains=True),
        _train,
        _EPILOG,
    ),
    "prepare": Verb(
        "draw or read the forget and retain sets and encode them into the cache", _arguments(), _prepare, _EPILOG
    ),
    "train": Verb("train an erasure adapter, then evaluate it", _arguments(trains=True), _train, _EPILOG),
    "evaluate": Verb("evaluate the adapter of a finished run again", _arguments(), _evaluate, _EPILOG),
}
