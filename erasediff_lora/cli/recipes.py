"""The verbs that run a recipe: `erasediff-lora VERB RECIPE [--section.field VALUE …]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from erasediff_lora import demo
from erasediff_lora.cli.evaluation import evaluate_adapter
from erasediff_lora.cli.recipe_flags import EPILOG, load_recipe
from erasediff_lora.cli.verb import Verb
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe import Recipe
from erasediff_lora.run_folder import SET_SHEETS

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


def _recipe(parsed: argparse.Namespace, rest: Sequence[str]) -> Recipe:
    if parsed.verb == "demo":
        return load_recipe(DEMO_RECIPE, rest, demo_overrides(parsed.concept))
    return load_recipe(parsed.recipe, rest)


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
    synonyms = demo.SYNONYMS.get(concept)
    return overrides | {
        "forget.concepts": [{"name": concept, "anchor": mine[(mine.index(concept) + 1) % len(mine)]}],
        "retain.concepts": [other for other in mine if other != concept],
        "evaluation.attacks": ["paraphrases"] if synonyms else [],
        "evaluation.paraphrases": {concept: synonyms} if synonyms else {},
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
        evaluate_adapter(recipe, folder)


VERBS = {
    "demo": Verb(
        "erase a concept from the embedded model, and show before and after",
        _arguments(demo=True, trains=True),
        _train,
        EPILOG,
    ),
    "prepare": Verb(
        "draw or read the forget and retain sets and encode them into the cache", _arguments(), _prepare, EPILOG
    ),
    "train": Verb("train an erasure adapter, then evaluate it", _arguments(trains=True), _train, EPILOG),
}
