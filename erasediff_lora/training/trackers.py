"""TensorBoard and Weights & Biases, through accelerate: what a run and its evaluation tell them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from erasediff_lora.evaluation.results import recognition
from erasediff_lora.recipe import Recipe
from erasediff_lora.storage.run_folder import GRID_FILE, REPORT_FILE
from erasediff_lora.training import distributed

PROJECT = "erasediff-lora"


def begin(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the trackers that the recipe names; several parts of one run stand under the name of its folder."""
    names = {"wandb": {"name": recipe.output.name, "group": recipe.output.name}}
    accelerator.init_trackers(PROJECT, config={"recipe": recipe.to_yaml()}, init_kwargs=names)


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
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))[None]
        for tracker in accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels}, step=step, **layout)


def tell_evaluation(recipe: Recipe, folder: Path, result: Mapping[str, Any]) -> None:
    """The evaluation after a run: unlearning and retain accuracy, the verdict, the pictures, the report.

    Args:
        recipe: Names the trackers, if any.
        folder: Of the evaluation.
        result: Its numbers.
    """
    if not recipe.training.log_with:
        return
    accelerator = distributed.start(recipe)
    begin(accelerator, recipe)
    seen = recognition(result)
    told = {}
    if seen is not None:
        told = {"final/unlearning_accuracy": seen.forgotten}
        told |= {} if seen.retained is None else {"final/retain_accuracy": seen.retained}
        told |= {f"final/unlearning_accuracy/{name}": rate.share for name, rate in seen.concepts.items()}
    tell(accelerator, recipe.steps, told, {"final": folder / GRID_FILE})
    verdict = {f"verdict/{claim['claim']}": f"{claim['holds']}: {claim['text']}" for claim in result["verdict"]}
    for tracker in accelerator.trackers:
        tracker.log(verdict, step=recipe.steps)
        if tracker.name == "wandb":
            import wandb

            tracker.tracker.log({"report": wandb.Html((folder / REPORT_FILE).read_text(encoding="utf-8"))})
    accelerator.end_training()
