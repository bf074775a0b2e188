"""TensorBoard and Weights & Biases, through accelerate: what a run and its evaluation tell them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from numpy.typing import NDArray
from PIL import Image

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.results import asked, measured, recognition
from erasediff_lora.evaluation.verdict import ANSWERS, headline
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.run_folder import EVALUATIONS, GRID_FILE, REPORT_FILE
from erasediff_lora.training import distributed

log = logging.getLogger(__name__)
PROJECT = "erasediff-lora"
FIELD = "training.log_with"
LONGEST_TAG = 120


def require_installed(recipe: Recipe) -> None:
    """Refuse trackers that are not there: accelerate would leave them out without a word.

    Raises:
        UserError: With each that is missing.
    """
    problems = [
        Problem(FIELD, name, "is not installed.", f'Install it: pip install "erasediff-lora[{name}]", or leave it out.')
        for name in recipe.training.log_with
        if find_spec(name) is None
    ]
    if problems:
        raise UserError(*problems)


def begin(accelerator: Accelerator, recipe: Recipe, name: str | None = None) -> None:
    """Start the trackers that the recipe names.

    Args:
        accelerator: Made with their names.
        recipe: Of the run; all its parts stand in one group of Weights & Biases, under the name of its folder.
        name: Of this part; by default the folder's as well.

    Raises:
        UserError: If one does not start.
    """
    options: dict[str, Any] = {"name": name or recipe.output.name, "group": recipe.output.name}
    if "WANDB_DIR" not in os.environ:
        options["dir"] = str(recipe.output)
    try:
        accelerator.init_trackers(PROJECT, config={"recipe": recipe.to_yaml()}, init_kwargs={"wandb": options})
    except Exception as error:
        what = f"cannot be started: {' '.join(str(error).split())[:200]}"
        remedy = "For wandb: run `wandb login`, or add --offline and `wandb sync` what it leaves in the run."
        raise UserError(Problem(FIELD, recipe.training.log_with, what, remedy)) from error


def tell(accelerator: Accelerator, step: int, numbers: Mapping[str, float], sheets: Mapping[str, Path]) -> None:
    """Numbers and pictures of a step.

    Args:
        accelerator: With its trackers.
        step: Steps of the run that are done.
        numbers: By their names.
        sheets: Name -> a picture, with its prompts on it.
    """
    if numbers:
        accelerator.log(dict(numbers), step=step)
    for name, file in sheets.items():
        for tracker in accelerator.trackers:
            _show(tracker, name, {name: _pixels(file)}, step)


def tell_evaluation(recipe: Recipe, result: Mapping[str, Any]) -> None:
    """A whole evaluation: unlearning and retain accuracy, the verdict, the pictures, the report.

    It is on the disk by then: a tracker that fails is complained of, and nothing else is lost.

    Args:
        recipe: Names the trackers, if any, and the run.
        result: Its numbers.
    """
    if not recipe.training.log_with:
        return
    folder = recipe.output / EVALUATIONS / result["name"]
    try:
        require_installed(recipe)
        accelerator = distributed.start(recipe)
        begin(accelerator, recipe, result["name"])
    except UserError as error:
        log.warning("the trackers are not told of the evaluation: %s", error)
        return
    tell(accelerator, recipe.steps, _rates(result), {"final": folder / GRID_FILE})
    verdict = {
        f"verdict/{claim['claim']}": f"{ANSWERS[claim['holds']]}: {claim['text']}" for claim in result["verdict"]
    }
    pairs = {
        f"{entry['prompt']} (seed {entry['seed']})": np.hstack(
            [_pixels(folder / entry[key]) for key in ("base", "erased")]
        )
        for entry in result["pictures"]
    }
    for tracker in accelerator.trackers:
        _show(tracker, "without and with the adapter", pairs, recipe.steps)
        report: Any = _as_text(result, folder)
        if tracker.name == "wandb":
            import wandb

            report = wandb.Html((folder / REPORT_FILE).read_text(encoding="utf-8"), inject=False)
        tracker.log(verdict | {"report": report}, step=recipe.steps)
    accelerator.end_training()


def _pixels(file: Path) -> NDArray[np.uint8]:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def _show(tracker: GeneralTracker, name: str, pictures: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Pictures by their captions, which TensorBoard has none of: there they stand in the tag."""
    if tracker.name == "wandb":
        import wandb

        shown = [wandb.Image(pixels, caption=caption) for caption, pixels in pictures.items()]
        tracker.log({name: shown}, step=step)
        return
    for caption, pixels in pictures.items():
        tag = name if caption == name else f"{name}/{caption[:LONGEST_TAG]}"
        tracker.log_images({tag: pixels[None]}, step=step, dataformats="NHWC")


def _rates(result: Mapping[str, Any]) -> dict[str, float]:
    seen = recognition(result)
    if seen is None:
        return {}
    told = {"final/unlearning_accuracy": seen.forgotten, "final/retain_accuracy": seen.retained}
    told |= {f"final/unlearning_accuracy/{name}": rate.share for name, rate in seen.concepts.items()}
    return {name: value for name, value in told.items() if value is not None}


def _as_text(result: Mapping[str, Any], folder: Path) -> str:
    """The report in Markdown, which is what TensorBoard shows, and where the whole lies."""
    rows = [(claim["claim"], f"**{ANSWERS[claim['holds']]}.** {claim['text']}") for claim in result["verdict"]]
    for metric, found in measured(result):
        rows += asked(metric, metric.summary, found, result["concepts"], otherwise=())
    table = "\n".join(f"| {word} | {text} |" for word, text in rows)
    return f"**{headline(result['verdict'])}**\n\n| | |\n|---|---|\n{table}\n\n{folder / REPORT_FILE}"
