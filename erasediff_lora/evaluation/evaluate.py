"""The evaluation of an adapter: measure, attack, judge the whole, and write it all down."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from erasediff_lora import __version__
from erasediff_lora.adapter.checkpoint import fingerprint_of
from erasediff_lora.data.near import choose_near
from erasediff_lora.data.prompt_files import describe, file_prompts
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.archive import entry_for, put_foremost
from erasediff_lora.evaluation.attacks import Attack, Outcome, attack
from erasediff_lora.evaluation.attacks.listed_prompts import LISTED
from erasediff_lora.evaluation.candidates import load_candidates
from erasediff_lora.evaluation.erasures import digest, locate, size
from erasediff_lora.evaluation.evidence import Evidence
from erasediff_lora.evaluation.exports import export
from erasediff_lora.evaluation.judging import unjudged
from erasediff_lora.evaluation.means import check_means, check_same_erasure, require_steps_of_base, warn_of_resolution
from erasediff_lora.evaluation.metrics import metric
from erasediff_lora.evaluation.metrics.accuracy import kept, success
from erasediff_lora.evaluation.other_models import at_hand
from erasediff_lora.evaluation.pictures import Drawn, forget_prompts, save_grid, save_pairs
from erasediff_lora.evaluation.protocols.record import record
from erasediff_lora.evaluation.report import write_report
from erasediff_lora.evaluation.report.strips import Look, Pair, Sheet, save_strips
from erasediff_lora.evaluation.score import score
from erasediff_lora.evaluation.verdict import verdict
from erasediff_lora.machine.progress import whole
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.public import is_sensitive, public_recipe
from erasediff_lora.registry import FAMILIES, SURVIVAL
from erasediff_lora.storage.files import atomic_folder, require_writable, write_text
from erasediff_lora.storage.ownership import claim, require_ours
from erasediff_lora.storage.run_folder import EVALUATION_FILE, GRID_FILE, PICTURES

log = logging.getLogger(__name__)
PAIRS = 4
PACKAGES = ("torch", "diffusers", "transformers", "peft", "torchmetrics")


def evaluate(
    recipe: Recipe, adapter: Path, folder: Path, *, name: str = "evaluation", force: bool = False
) -> dict[str, Any]:
    """Measure what the recipe's evaluation asks for, and write evaluation.json, report.html and pictures.

    The adapter is loaded from its file with plain diffusers, as a user of the adapter would. What a metric or an attack
    cannot do is noted under 'refused', and the rest is made. All of it goes to a folder of its own,
    FOLDER/evaluations/DATE-NAME, and to FOLDER itself unless what is there measures more (see `archive`).

    Args:
        recipe: The base, the prompts, and what to measure.
        adapter: Adapter file of any format, a folder with one, the folder of a run that trained without, or what
            another eraser made of the base: a diffusers folder, a single file, the network or some of its weights.
        folder: Where the results go.
        name: What this evaluation is called.
        force: Also if the adapter was made to erase something else.

    Returns:
        The content of evaluation.json. Accuracies and successes are shares of pictures in [0, 1].

    Raises:
        UserError: If the base, the adapter or what the evaluation names cannot be loaded, they do not fit each other,
            or the folder cannot be written.
    """
    file = locate(at_hand(recipe, adapter), FAMILIES[recipe.model.family].component)
    entry = entry_for(folder, name)
    require_writable(entry)
    require_ours(folder, "evaluation")
    if not force:
        check_same_erasure(recipe, adapter, file)
    whole.enter("evaluate")
    asked, recipe = recipe, _drawn_by(_with_listed_prompts(recipe))
    check_means(recipe)
    clock = Clock()
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    with clock.time("loading"):
        candidates = load_candidates(recipe, file)
        recipe = choose_near(recipe, candidates.base.denoiser)
        evidence = Evidence(recipe, candidates)
    require_steps_of_base(recipe, evidence.candidates.base.denoiser)
    warn_of_resolution(recipe, evidence.candidates.base.denoiser)
    with clock.time("pictures"):
        pictures = _drawn(evidence)
    result = {"name": entry.name} | _facts(recipe, evidence, file) | {"recipe_sha256": asked.sha256()}
    result |= {"metrics": {}, "attacks": {}, "survival": {}, "refused": {}}
    shown = _measure(evidence, result, clock)
    result |= {"verdict": verdict(result), "score": score(result).as_json()}
    claim(folder, "evaluation")
    with clock.time("report"), atomic_folder(entry) as made:
        _show(made, result, pictures, shown, evidence)
        _export(made, evidence, shown)
        result["seconds"] = clock.seconds
        write_text(made / EVALUATION_FILE, json.dumps(result, indent=2) + "\n")
        write_report(made, run=folder)
    put_foremost(folder, entry)
    return result


def _measure(evidence: Evidence, result: dict[str, Any], clock: Clock) -> dict[str, dict[str, Outcome]]:
    """Metrics, attacks and survival, into the result; returns what each attack drew on each model."""
    options = evidence.recipe.evaluation
    for part in options.metrics:
        with clock.time(part), _noted(part, result["refused"]):
            result["metrics"][part] = metric(part).measure(evidence)
    shown: dict[str, dict[str, Outcome]] = {}
    for part in options.attacks:
        with clock.time(part), _noted(part, result["refused"]):
            attacker = attack(part)
            shown[part] = {model.name: attacker.run(evidence, model) for model in evidence.candidates.attacked()}
            result["attacks"][part] = _entry(attacker, evidence, shown[part])
    for part in options.survival:
        with clock.time(part), _noted(part, result["refused"]):
            result["survival"][part] = SURVIVAL[part](part).measure(evidence)
    return shown


def _with_listed_prompts(recipe: Recipe) -> Recipe:
    """The recipe with the attack that the prompts of its files are, where they are one; they are described."""
    found = file_prompts(recipe)
    describe(found)
    if not found.attack or LISTED in recipe.evaluation.attacks:
        return recipe
    attacks = [*recipe.evaluation.attacks, LISTED]
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"attacks": attacks})})


def _drawn_by(recipe: Recipe) -> Recipe:
    """The recipe with the evaluation's own steps and guidance, where it has some."""
    options = recipe.evaluation
    own = {name: value for name in ("steps", "guidance") if (value := getattr(options, name)) is not None}
    return recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update=own)}) if own else recipe


def _drawn(evidence: Evidence) -> dict[str, Pair]:
    """Pictures of both kinds of prompts, without and with the adapter."""
    base, erased = evidence.candidates.base, evidence.candidates.erased
    draws = {"forget": evidence.forget, "retain": evidence.retain}
    return {kind: (draw(base), draw(erased)) for kind, draw in draws.items()}


def _show(
    folder: Path,
    result: dict[str, Any],
    pictures: Mapping[str, Pair],
    attacks: Mapping[str, Mapping[str, Outcome]],
    evidence: Evidence,
) -> None:
    """Write the pictures that the report, the card and a quick look show."""
    save_grid(folder / GRID_FILE, *pictures["forget"], *pictures["retain"])
    result["pictures"] = [
        entry for kind, pair in pictures.items() for entry in save_pairs(folder / PICTURES, kind, *pair, PAIRS)
    ]
    more = [
        Sheet(name, number, title, title, rows)
        for name in result["metrics"]
        for number, (title, rows) in enumerate(metric(name).pictures(evidence).items(), 1)
    ]
    result["strips"] = save_strips(folder / PICTURES, pictures, attacks, more, _look(evidence))


def _look(evidence: Evidence) -> Look | None:
    """The judge's eyes: of other prompts it wants all that they ask for, else the concept."""
    judge = evidence.judge
    if judge is None:
        return None

    def look(section: str, drawn: Sequence[Drawn]) -> Sequence[bool | None]:
        return [row[0] for row in kept(judge, drawn)] if section == "retain" else success(judge, drawn)

    return look


def _export(folder: Path, evidence: Evidence, attacks: Mapping[str, Mapping[str, Outcome]]) -> None:
    """Write what searches found on the erased model."""
    found = {name: outcomes["erased"].found for name, outcomes in attacks.items() if outcomes["erased"].found}
    if found:
        texts = [prompt.text for prompt in forget_prompts(evidence.recipe)]
        export(folder, evidence.candidates.base.denoiser, found, texts)


def _facts(recipe: Recipe, evidence: Evidence, file: Path) -> dict[str, Any]:
    """What was evaluated, and where."""
    options, own_size = recipe.evaluation, evidence.candidates.base.denoiser.resolution
    return {
        "version": __version__,
        "base": recipe.model.public_name,
        "base_fingerprint": fingerprint_of(evidence.candidates.base.denoiser.weights),
        "adapter": {"file": file.name, "bytes": size(file), "sha256": digest(file)},
        "recipe": public_recipe(recipe),
        "concepts": evidence.forgotten,
        "protocol": record(recipe, evidence),
        "prompts": [dict(told) for told in evidence.from_files.files],
        "judge": options.without_folders()["judge"],
        "unjudged": [] if evidence.judge is None else unjudged(recipe, evidence.judge),
        "base_rate": options.base_rate,
        "resolution": {"drawn": recipe.sampling.resolution or own_size, "own": own_size},
        "forget_samples": len(evidence.forget_prompts),
        "forget_samples_base": len(evidence.forget(evidence.candidates.base)),
        "retain_samples": len(evidence.retain_prompts),
        "seeds": {
            "forget": [evidence.forget_seed, evidence.forget_seed + len(evidence.forget_prompts) - 1],
            "retain": [evidence.retain_seed, evidence.retain_seed + len(evidence.retain_prompts) - 1],
        },
        "sampling": recipe.sampling.model_dump(mode="json"),
        "blur": options.blur
        if options.blur is not None
        else is_sensitive(concept.name for concept in recipe.forget.concepts),
        "environment": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
            "device": str(evidence.candidates.base.denoiser.device),
            "dtype": str(evidence.candidates.base.denoiser.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        },
    }


def _entry(attacker: Attack, evidence: Evidence, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    return {
        "title": attacker.title,
        "budget": attacker.budget(evidence),
        "models": {
            model: {
                "success": outcome.success,
                "tries": outcome.tries,
                "pictures": len(outcome.pictures),
                "per_concept": outcome.per_concept,
            }
            | outcome.details
            for model, outcome in outcomes.items()
        },
    }


@contextmanager
def _noted(name: str, refused: dict[str, str]) -> Iterator[None]:
    """Note why something could not be measured, and go on."""
    try:
        yield
    except UserError as error:
        refused[name] = "; ".join(str(problem) for problem in error.problems)
        log.warning("%s is left out: %s", name, refused[name])


class Clock:
    """Seconds by name, summed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Count what happens inside under the name."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 1)
