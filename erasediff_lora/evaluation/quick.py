"""The quick evaluation: is the concept gone, is the rest still there, what does it look like."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from erasediff_lora import __version__, denoisers
from erasediff_lora.adapter.formats import diffusers as diffusers_format
from erasediff_lora.adapter.loading import load
from erasediff_lora.data.prompts import Prompt, balanced
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.judges import JUDGES, PictureJudge
from erasediff_lora.evaluation.picture_store import PictureStore
from erasediff_lora.evaluation.pictures import Drawn, draw, forget_prompts, retain_prompts, save_pairs, save_sheet
from erasediff_lora.files import write_text
from erasediff_lora.recipe import Recipe
from erasediff_lora.run_folder import EVALUATION_FILE, GRID_FILE, PICTURES

PAIRS = 4
BASE_FORGET_SAMPLES = 60


def evaluate(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Draw with and without the adapter in `folder`, judge, and write evaluation.json and before_after.png there.

    The adapter is loaded from its file with plain diffusers, as a user of the adapter would.

    Returns:
        The content of evaluation.json. Accuracies are shares of pictures in [0, 1].

    Raises:
        UserError: If the folder holds no adapter.
    """
    if not (folder / diffusers_format.FILE).is_file():
        raise UserError(
            Problem(
                "run", str(folder), f"holds no {diffusers_format.FILE}.", "Train first: erasediff-lora train RECIPE."
            )
        )
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    began = time.perf_counter()
    denoiser = denoisers.load(recipe.model)
    options = recipe.evaluation
    to_forget = balanced(forget_prompts(recipe), options.forget_samples, options.seed)
    to_retain = balanced(retain_prompts(recipe), options.retain_samples, options.seed)
    forget_seed, retain_seed = options.seed, options.seed + options.forget_samples

    # That the base draws the concept needs no more than a glance; the other three counts are compared.
    file = folder / diffusers_format.FILE
    store = PictureStore.of(recipe, denoiser, None)
    forget_before = draw(denoiser, recipe, to_forget[:BASE_FORGET_SAMPLES], forget_seed, "forget, base", store)
    retain_before = draw(denoiser, recipe, to_retain, retain_seed, "retain, base", store)
    load(denoiser.pipeline, file, base=denoiser.source)
    store = PictureStore.of(recipe, denoiser, file)
    forget_after = draw(denoiser, recipe, to_forget, forget_seed, "forget, erased", store)
    retain_after = draw(denoiser, recipe, to_retain, retain_seed, "retain, erased", store)

    save_grid(folder / GRID_FILE, forget_before, forget_after, retain_before, retain_after)
    result: dict[str, Any] = {
        "version": __version__,
        "base": recipe.model.base,
        "concepts": [concept.name for concept in recipe.forget.concepts],
        "forget_samples": len(to_forget),
        "forget_samples_base": len(forget_before),
        "retain_samples": len(to_retain),
        "seeds": {"forget": [forget_seed, retain_seed - 1], "retain": [retain_seed, retain_seed + len(to_retain) - 1]},
        "sampling": recipe.sampling.model_dump(mode="json"),
        "judge": options.judge,
    }
    if options.judge is not None:
        judge = JUDGES[options.judge]()
        concepts = {*result["concepts"], *recipe.retain.concepts}
        result |= judge_pictures(judge, forget_before, forget_after, retain_before, retain_after, concepts)
    result["pictures"] = [
        *save_pairs(folder / PICTURES, "forget", forget_before, forget_after, PAIRS),
        *save_pairs(folder / PICTURES, "retain", retain_before, retain_after, PAIRS),
    ]
    result["seconds"] = round(time.perf_counter() - began, 1)
    write_text(folder / EVALUATION_FILE, json.dumps(result, indent=2) + "\n")
    return result


def judge_pictures(
    judge: PictureJudge,
    forget_before: Sequence[Drawn],
    forget_after: Sequence[Drawn],
    retain_before: Sequence[Drawn],
    retain_after: Sequence[Drawn],
    concepts: Collection[str],
) -> dict[str, Any]:
    """Unlearning and retain accuracy, overall and by concept, and what the forgotten concepts became.

    Args:
        judge: The classifier.
        forget_before: Pictures for forget prompts by the base; the first of `forget_after`'s prompts and seeds.
        forget_after: The same by the base with the adapter.
        retain_before: Pictures for retain prompts by the base.
        retain_after: The same by the base with the adapter.
        concepts: What a forgotten concept may have become; anything else counts as 'other'.
    """
    seen_before, seen_after = _seen(judge, forget_before), _seen(judge, forget_after)
    forgotten_before = [item.prompt.concept not in seen for item, seen in zip(forget_before, seen_before, strict=True)]
    forgotten_after = [item.prompt.concept not in seen for item, seen in zip(forget_after, seen_after, strict=True)]
    kept_before = _all_seen(judge, retain_before)
    kept_after = _all_seen(judge, retain_after)
    attributes = [_shows(item.prompt, seen, judge.labels) for item, seen in zip(forget_after, seen_after, strict=True)]
    per_concept: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(str(item.prompt.concept) for item in forget_after):
        rows = [i for i, item in enumerate(forget_after) if item.prompt.concept == name]
        per_concept[name] = {"unlearning_accuracy": _share([forgotten_after[i] for i in rows])}
        if base := [forgotten_before[i] for i in rows if i < len(forget_before)]:
            per_concept[name]["unlearning_accuracy_base"] = _share(base)
        became = Counter(min(seen_after[i] & set(concepts), default="other") for i in rows)
        per_concept[name]["became"] = {label: count / len(rows) for label, count in became.most_common()}
    for name in dict.fromkeys(str(item.prompt.concept) for item in retain_after):
        rows = [i for i, item in enumerate(retain_after) if str(item.prompt.concept) == name]
        per_concept[name] = {
            "retain_accuracy": _share([kept_after[i] for i in rows]),
            "retain_accuracy_base": _share([kept_before[i] for i in rows]),
        }
    return {
        "unlearning_accuracy": _share(forgotten_after),
        "unlearning_accuracy_base": _share(forgotten_before),
        "retain_accuracy": _share(kept_after),
        "retain_accuracy_base": _share(kept_before),
        "forget_prompt_attributes_accuracy": _share(attributes),
        "per_concept": per_concept,
    }


def _seen(judge: PictureJudge, drawn: Sequence[Drawn]) -> list[set[str]]:
    return judge.recognise([item.image for item in drawn])


def _all_seen(judge: PictureJudge, drawn: Sequence[Drawn]) -> list[bool]:
    """Whether the concept, if there is one, and every attribute that the judge knows are recognised."""
    return [
        (item.prompt.concept is None or item.prompt.concept in seen) and _shows(item.prompt, seen, judge.labels)
        for item, seen in zip(drawn, _seen(judge, drawn), strict=True)
    ]


def _shows(prompt: Prompt, seen: set[str], labels: set[str]) -> bool:
    return all(value in seen for value in prompt.attributes.values() if value in labels)


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def save_grid(
    path: Path,
    forget_before: Sequence[Drawn],
    forget_after: Sequence[Drawn],
    retain_before: Sequence[Drawn],
    retain_after: Sequence[Drawn],
    *,
    columns: int = 10,
    prompts: int = 9,
) -> None:
    """Same seeds, without and with the adapter, one pair of rows a concept."""
    rows: list[tuple[str, list[Image.Image]]] = []
    for title, before, after in (
        ("FORGET", forget_before, forget_after),
        ("RETAIN", retain_before, retain_after),
    ):
        rows.append((title, []))
        names = list(dict.fromkeys(item.prompt.concept or item.prompt.text for item in before))
        for name in names[:prompts]:
            chosen = [i for i, item in enumerate(before) if (item.prompt.concept or item.prompt.text) == name]
            for label, drawn in (("base", before), ("erased", after)):
                rows.append((f"{name}, {label}", [drawn[i].image for i in chosen[:columns]]))
    save_sheet(rows, path)
