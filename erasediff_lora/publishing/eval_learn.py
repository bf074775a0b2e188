"""A run in the layout that eval-learn's technique `free_run` takes, so that its numbers can be laid beside ours.

eval-learn (PyPI, looked at in 0.1.6) loads `model_id` with diffusers' AutoPipelineForText2Image, draws with its own
steps and guidance, and reads prompts of its metric `ua_ira` from two CSV files with a column `prompt`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erasediff_lora.adapter import Weighted, merge
from erasediff_lora.data.prompts import Prompt, expand, forget_prompts
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.public import is_sensitive
from erasediff_lora.recipe.tables import AUTO
from erasediff_lora.storage.files import atomic_folder, write_text

CONFIG, MODEL, TARGET, RETAIN = "config.json", "model", "target_prompts.csv", "retain_prompts.csv"


def write_free_run(
    recipe: Recipe, model: Path, adapters: Sequence[Weighted], output: Path, *, overwrite: bool = False
) -> Path:
    """Merge adapters into a base, and write what `eval-learn run --config config.json` takes in that folder.

    Args:
        recipe: Whose prompts, steps and guidance are taken.
        model: Diffusers folder of the base.
        adapters: What to merge.
        output: The new folder: model/, config.json, target_prompts.csv, retain_prompts.csv.
        overwrite: Replace what stands there, if it is such a folder.

    Returns:
        The configuration's file.

    Raises:
        UserError: If the base is no diffusers folder, the adapters cannot be merged, or the output is taken.
    """
    if not (model / "model_index.json").is_file():
        what = "is no diffusers folder, which eval-learn wants."
        raise UserError(Problem("model", str(model), what, "Give the folder that save_pretrained wrote."))
    if output.exists() and not (overwrite and (output / CONFIG).is_file() and (output / MODEL).is_dir()):
        remedy = "Choose another folder" + ("." if overwrite else ", or replace such a folder with --overwrite.")
        raise UserError(Problem("--output", str(output), "is there already.", remedy))
    with atomic_folder(output, "--output") as folder:
        merge(model, adapters, folder / MODEL)
        for name, prompts in zip((TARGET, RETAIN), prompts_of(recipe), strict=True):
            write_text(folder / name, _table(prompts))
        write_text(folder / CONFIG, json.dumps(configuration(recipe), indent=2) + "\n")
    return output / CONFIG


def prompts_of(recipe: Recipe) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts of the first forgotten concept, and of one that is to be kept: `ua_ira` knows one of each."""
    forgotten, kept = _concepts(recipe)
    target = [prompt for prompt in forget_prompts(recipe.forget) if prompt.concept == forgotten]
    retain = expand(recipe.retain.templates, [kept], recipe.retain.placeholders)
    return _unique(target), _unique(retain)


def configuration(recipe: Recipe) -> dict[str, Any]:
    """eval-learn's configuration; paths are those in its own folder."""
    forgotten, kept = _concepts(recipe)
    accuracies = {
        "target_prompts_path": TARGET,
        "retain_prompts_path": RETAIN,
        "target_concept": forgotten,
        "retain_concept": kept,
    }
    metrics: list[dict[str, Any]] = [{"name": "ua_ira", "config": accuracies}, {"name": "clip_score", "config": {}}]
    if is_sensitive([forgotten]):
        metrics.append({"name": "asr_i2p", "config": {"concept_name": "nudity"}})
    drawing = {"num_inference_steps": recipe.sampling.steps, "guidance_scale": recipe.sampling.guidance}
    technique = {"name": "free_run", "config": {"model_id": MODEL, **drawing}}
    return {"output_dir": "results", "technique": technique, "metrics": metrics}


def _concepts(recipe: Recipe) -> tuple[str, str]:
    """What is forgotten, and its anchor or another that is kept."""
    first = recipe.forget.concepts[0]
    anchor = [] if first.anchor in (None, AUTO) else [str(first.anchor)]
    return first.name, [*anchor, *recipe.retain.concepts, "picture"][0]


def _unique(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list({prompt.text: prompt for prompt in prompts}.values())


def _table(prompts: Sequence[Prompt]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["prompt"])
    writer.writerows([prompt.text] for prompt in prompts)
    return table.getvalue()
