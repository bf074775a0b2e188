"""What can be wrong between the fields of a recipe, each of which is valid by itself."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erasediff_lora import demo
from erasediff_lora.errors import Problem, nearest
from erasediff_lora.evaluation import judges
from erasediff_lora.storage.files import PICKLE_SUFFIXES

if TYPE_CHECKING:
    from erasediff_lora.objectives import ObjectiveSettings
    from erasediff_lora.recipe import AdapterSettings, Adversary, ForgetSet, Model, RetainSet, Training
    from erasediff_lora.recipe.evaluation import Evaluation


def cross_check(sections: dict[str, Any]) -> list[Problem]:
    """Problems between fields, for the sections that are valid by themselves."""
    problems: list[Problem] = []
    model: Model | None = sections.get("model")
    forget: ForgetSet | None = sections.get("forget")
    retain: RetainSet | None = sections.get("retain")
    objective: ObjectiveSettings | None = sections.get("objective")
    training: Training | None = sections.get("training")

    if model and Path(model.base).suffix in PICKLE_SUFFIXES and not model.allow_pickle:
        problems.append(
            Problem(
                "model.base",
                model.base,
                "is a pickle, which can run code when opened.",
                "Convert it to safetensors, or set model.allow_pickle: true if you trust it.",
            )
        )
    for name, data in (("forget", forget), ("retain", retain)):
        if data:
            problems += _check_set(name, data)
    if forget:
        problems += _check_concepts(forget, retain, objective, is_demo=bool(model and model.base == "demo"))
    if training and training.batch_size % training.gradient_accumulation:
        problems.append(
            Problem(
                "training.gradient_accumulation",
                training.gradient_accumulation,
                f"does not divide training.batch_size ({training.batch_size}).",
                "Choose a divisor.",
            )
        )
    adapter: AdapterSettings | None = sections.get("adapter")
    for name, value in (("model.quantize", model and model.quantize), ("training.shard", training and training.shard)):
        for is_so, what in (
            (adapter and adapter.kind == "none", "adapter: none trains the weights themselves"),
            (objective and objective.name == "selective_amnesia", "selective_amnesia differentiates by them"),
        ):
            if value and is_so:
                problems.append(Problem(name, value, f"leaves no whole weights to train: {what}.", "Omit it."))
    if training and training.shard:
        problems += _check_shard(training, model)
    if training and training.min_snr_gamma and model and model.family == "stable_diffusion_3":
        problems.append(
            Problem(
                "training.min_snr_gamma",
                training.min_snr_gamma,
                "weighs by a noise schedule, which a model of flow matching does not have.",
                "Omit it.",
            )
        )
    for name in ("vae_tiling", "offload"):
        if model and getattr(model, name) and model.family == "class_conditional":
            problems.append(Problem(f"model.{name}", True, "needs an autoencoder; this family has none.", "Omit it."))
    adversary: Adversary | None = sections.get("adversary")
    if model and model.offload and adversary and adversary.pool:
        problems.append(
            Problem(
                "model.offload",
                True,
                f"parts networks that a search differentiates through together (adversary.pool: {adversary.pool}).",
                "Omit it, or set adversary.pool: 0.",
            )
        )
    if evaluation := sections.get("evaluation"):
        problems += _check_evaluation(evaluation, forget, training)
    for pattern in adapter.targets if adapter and isinstance(adapter.targets, list) else []:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(Problem("adapter.targets", pattern, f"is not a regular expression: {error}."))
    return problems


def _check_shard(training: Training, model: Model | None) -> list[Problem]:
    alone = "one process would draw alone, with its share of the weights."
    conflicts = (
        ("model.quantize", model and model.quantize, "weights of 4 or 8 bits are not split."),
        ("training.sample_every", training.sample_every, alone),
        ("training.evaluate_every", training.evaluate_every, alone),
    )
    return [
        Problem(name, value, f"cannot go with training.shard: {why}", "Omit one of them.")
        for name, value, why in conflicts
        if value
    ]


def _check_evaluation(evaluation: Evaluation, forget: ForgetSet | None, training: Training | None) -> list[Problem]:
    problems = []
    if evaluation.judge is not None and (problem := judges.check(evaluation.judge)) is not None:
        problems.append(problem)
    if training and training.evaluate_every and evaluation.judge is None:
        problems.append(
            Problem(
                "training.evaluate_every",
                training.evaluate_every,
                "chooses by what a judge sees, and evaluation.judge names none.",
                "Name a judge, or omit it.",
            )
        )
    known = [concept.name for concept in forget.concepts] if forget else []
    for name, others in evaluation.paraphrases.items():
        if known and name not in known:
            problems.append(Problem("evaluation.paraphrases", name, "is not to be forgotten.", nearest(name, known)))
        if not all(other.strip() for other in others) or not others:
            problems.append(
                Problem(f"evaluation.paraphrases.{name}", others, "holds no name.", "List other names, or omit it.")
            )
    ranges: dict[str, tuple[list[float], float, float]] = {
        "strengths": (evaluation.strengths, 0, 10),
        "latent_start.strengths": (evaluation.latent_start.strengths, 0, 1),
        "relearning.steps": ([float(step) for step in evaluation.relearning.steps], 0, 1e9),
    }
    for name, (values, low, high) in ranges.items():
        for value in values:
            if not low < value <= high:
                problems.append(Problem(f"evaluation.{name}", value, f"must be above {low} and at most {high:g}."))
    return problems


def _check_set(name: str, data: ForgetSet | RetainSet) -> list[Problem]:
    problems = []
    for template in data.templates:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        except ValueError as error:
            problems.append(Problem(f"{name}.templates", template, f"is not a template: {error}."))
            continue
        for field in set(fields) - {"concept"} - data.placeholders.keys():
            problems.append(
                Problem(
                    f"{name}.templates",
                    template,
                    f"{{{field}}} has no values.",
                    f"List them under {name}.placeholders.{field}.",
                )
            )
        if "concept" not in fields and name == "forget":
            problems.append(
                Problem(f"{name}.templates", template, "does not name the concept.", "Put {concept} into it.")
            )
        if "concept" in fields and not data.concepts:
            problems.append(
                Problem(f"{name}.concepts", [], "nothing fills {concept}.", f"List concepts under {name}.concepts.")
            )
    for key, values in data.placeholders.items():
        if not values:
            problems.append(Problem(f"{name}.placeholders.{key}", values, "is empty.", "List at least one value."))
    images = data.images
    if images and (images.folder is None) == (images.dataset is None):
        problems.append(
            Problem(
                f"{name}.images",
                {"folder": images.folder, "dataset": images.dataset},
                "needs exactly one of folder and dataset.",
                "Set one of them.",
            )
        )
    if images and images.folder and not images.folder.is_dir():
        problems.append(
            Problem(f"{name}.images.folder", str(images.folder), "there is no such folder.", "Check the path.")
        )
    return problems


def _check_concepts(
    forget: ForgetSet, retain: RetainSet | None, objective: ObjectiveSettings | None, *, is_demo: bool
) -> list[Problem]:
    problems = []
    names = [concept.name for concept in forget.concepts]
    known = demo.CONCEPTS + demo.STYLES
    for index, concept in enumerate(forget.concepts):
        field = f"forget.concepts.{index}"
        if concept.anchor is not None and concept.anchor.strip().lower() == concept.name.strip().lower():
            problems.append(
                Problem(f"{field}.anchor", concept.anchor, "is the concept itself.", "Name another concept.")
            )
        if objective and objective.anchors == "named" and concept.anchor is None:
            problems.append(
                Problem(
                    f"{field}.anchor",
                    None,
                    f"{concept.name!r} has no anchor, and {_asking(objective)} wants one.",
                    "Name an anchor" + ", or set objective.target: random_anchor." * (objective.name == "erasediff"),
                )
            )
        if is_demo and concept.name not in known:
            problems.append(
                Problem(f"{field}.name", concept.name, "the demo model does not know it.", nearest(concept.name, known))
            )
        if is_demo and concept.anchor is not None and concept.anchor not in known:
            problems.append(
                Problem(
                    f"{field}.anchor",
                    concept.anchor,
                    "the demo model does not know it.",
                    nearest(concept.anchor, known),
                )
            )
    for index, name in enumerate(retain.concepts if retain else []):
        if name in names:
            problems.append(
                Problem(f"retain.concepts.{index}", name, "is to be forgotten as well.", "Take it out of one set.")
            )
    if objective and retain and objective.anchors == "any" and not retain.concepts:
        problems.append(
            Problem(
                "retain.concepts",
                [],
                f"{_asking(objective)} draws its anchors from it.",
                "List concepts, or choose another target.",
            )
        )
    return problems


def _asking(objective: ObjectiveSettings) -> str:
    """The option that asks for anchors, as the recipe writes it."""
    target = getattr(objective, "target", None)
    return f"objective.name: {objective.name}" if target is None else f"objective.target: {target}"
