"""What can be wrong between the fields of a recipe, each of which is valid by itself.

Here is what concerns the tables that every recipe has, by what their parts say of themselves and never by a name.
What only one part knows is in the `check` of its `Settings`; any table may have one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from erasediff_lora.errors import Problem
from erasediff_lora.recipe.adversary import Adversary
from erasediff_lora.recipe.concept_checks import CONCEPTS
from erasediff_lora.recipe.data_checks import check_set
from erasediff_lora.recipe.evaluation import Evaluation
from erasediff_lora.recipe.schema import Section
from erasediff_lora.recipe.tables import (
    AdapterSettings,
    ForgetSet,
    Model,
    ObjectiveSettings,
    RetainSet,
    Sampling,
    Training,
)
from erasediff_lora.registry import FAMILIES
from erasediff_lora.storage.files import PICKLE_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Sections:
    """The tables of a recipe that are valid by themselves; None in place of one that is not."""

    model: Model | None = None
    forget: ForgetSet | None = None
    retain: RetainSet | None = None
    sampling: Sampling | None = None
    adapter: AdapterSettings | None = None
    objective: ObjectiveSettings | None = None
    adversary: Adversary | None = None
    training: Training | None = None
    evaluation: Evaluation | None = None

    @property
    def takes_no_steps(self) -> bool:
        """Whether the adapter ends where it starts, and no picture is needed for it."""
        return bool(self.objective and self.objective.closed_form) or bool(self.training and self.training.steps == 0)

    def __iter__(self) -> Iterator[Section]:
        """Those that there are."""
        values = (getattr(self, field.name) for field in fields(self))
        return (value for value in values if value is not None)


def cross_check(sections: Sections) -> list[Problem]:
    """Problems between fields, for the sections that are valid by themselves."""
    checks = [*TOPICS, *(section.check for section in sections)]
    return [problem for check in checks for problem in check(sections)]


def no_whole_weights(sections: Sections, what: str) -> list[Problem]:
    """Problems of a part that needs the network's weights whole.

    Args:
        sections: The recipe's.
        what: Says what needs them, and for what.
    """
    values = {
        "model.quantize": sections.model and sections.model.quantize,
        "training.shard": sections.training and sections.training.shard,
    }
    return [
        Problem(name, value, f"leaves no whole weights to train: {what}.", "Omit it.")
        for name, value in values.items()
        if value
    ]


def _pickles(sections: Sections) -> Iterator[Problem]:
    model = sections.model
    if model and Path(model.base).suffix in PICKLE_SUFFIXES and not model.allow_pickle:
        yield Problem(
            "model.base",
            model.base,
            "is a pickle, which can run code when opened.",
            "Convert it to safetensors, or set model.allow_pickle: true if you trust it.",
        )


def _data(sections: Sections) -> Iterator[Problem]:
    for name, data in (("forget", sections.forget), ("retain", sections.retain)):
        if data:
            yield from check_set(name, data)


def _micro_batches(sections: Sections) -> Iterator[Problem]:
    training = sections.training
    parts = training.gradient_accumulation if training else "auto"
    if training and isinstance(parts, int) and training.batch_size % parts:
        yield Problem(
            "training.gradient_accumulation",
            parts,
            f"does not divide training.batch_size ({training.batch_size}).",
            "Choose a divisor.",
        )


def _one_pass(sections: Sections) -> Iterator[Problem]:
    training, adapter, objective = sections.training, sections.adapter, sections.objective
    if training is None or not training.one_pass:
        return
    if objective and not objective.gradients_apart:
        yield Problem("training.one_pass", True, f"is of no use to objective.name {objective.name}.", "Omit it.")
    conflicts = (
        ("training.compile", training.compile),
        ("training.shard", training.shard),
        ("adapter.kind", adapter.kind if adapter and adapter.trains_base else None),
        ("adapter.dora", getattr(adapter, "dora", False)),
    )
    for name, value in conflicts:
        if value:
            what = "leaves no gradients that can be told apart, as training.one_pass wants them."
            yield Problem(name, value, what, "Omit one of them.")


def _sharding(sections: Sections) -> Iterator[Problem]:
    training = sections.training
    if training is None or not training.shard:
        return
    alone = "one process would draw alone, with its share of the weights."
    conflicts = (
        ("model.quantize", sections.model and sections.model.quantize, "weights of 4 or 8 bits are not split."),
        ("training.sample_every", training.sample_every, alone),
        ("training.evaluate_every", training.evaluate_every, alone),
    )
    for name, value, why in conflicts:
        if value:
            yield Problem(name, value, f"cannot go with training.shard: {why}", "Omit one of them.")


def _family(sections: Sections) -> Iterator[Problem]:
    model, training = sections.model, sections.training
    if model is None:
        return
    family = FAMILIES[model.family]
    if training and training.min_snr_gamma and family.flow_matching:
        yield Problem(
            "training.min_snr_gamma",
            training.min_snr_gamma,
            "weighs by a noise schedule, which a model of flow matching does not have.",
            "Omit it.",
        )
    if training and (training.timesteps, training.timestep_shift) != ("uniform", 1.0) and not family.flow_matching:
        name = "timestep_shift" if training.timesteps == "uniform" else "timesteps"
        what = f"is of models of flow matching, which {model.family} is not."
        yield Problem(f"training.{name}", getattr(training, name), what, "Omit it.")
    if model.prediction_type and family.flow_matching:
        what = "is not what a model of flow matching predicts."
        yield Problem("model.prediction_type", model.prediction_type, what, "Omit it.")
    if model.quantize_encoders and not family.text_to_image:
        what = "needs text encoders; this family has none."
        yield Problem("model.quantize_encoders", model.quantize_encoders, what, "Omit it.")
    if model.network is not None and family.component != "transformer":
        what = f"is for the transformers, which {model.family} is not."
        yield Problem("model.network", str(model.network), what, "Omit it.")
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in family.encoders]
    known = (*family.encoders, *tokenizers, "vae") if family.text_to_image and family.in_diffusers else ()
    for name in model.parts.keys() - set(known):
        what = f"is no part of {model.family} that can have a file of its own."
        remedy = f"Known are: {', '.join(known)}." if known else "Omit it."
        yield Problem(f"model.parts.{name}", str(model.parts[name]), what, remedy)
    if model.network is not None and model.quantize:
        what = f"is not of {model.network.name}: only the base's own network is quantised when it is loaded."
        yield Problem("model.quantize", model.quantize, what, "Omit it, or model.network.")
    for name in model.parts.keys() & set(family.encoders) if model.quantize_encoders else ():
        what = (
            f"is not of {model.parts[name].name}: only the base's own text encoders are quantised when they are loaded."
        )
        yield Problem("model.quantize_encoders", model.quantize_encoders, what, f"Omit it, or model.parts.{name}.")
    for name in ("vae_tiling", "offload"):
        if getattr(model, name) and not family.has_autoencoder:
            yield Problem(f"model.{name}", True, "needs an autoencoder; this family has none.", "Omit it.")


def _offloaded_search(sections: Sections) -> Iterator[Problem]:
    model, adversary = sections.model, sections.adversary
    if model and model.offload and adversary and adversary.needs_encoders(model):
        yield Problem(
            "model.offload",
            True,
            f"parts networks that a search differentiates through together (adversary.pool: {adversary.pool}).",
            "Omit it, or set adversary.space: outputs.",
        )


def _no_steps(sections: Sections) -> Iterator[Problem]:
    training, adapter, objective = sections.training, sections.adapter, sections.objective
    if not (training and adapter and objective) or training.steps != 0 or objective.closed_form:
        return
    if adapter.start == "zero":
        what = "leaves the base as it is."
        yield Problem("training.steps", 0, what, "Take some, or set adapter.start: closed_form.")


def _until_gone(sections: Sections) -> Iterator[Problem]:
    training = sections.training
    if training is None or training.steps != "auto":
        return
    if sections.objective and not sections.objective.falls:
        what = f"ends by a forget loss that falls, which objective.name: {sections.objective.name} has not."
        yield Problem("training.steps", "auto", what, "Give a number of steps.")
    if training.average > 1:
        what = "is the mean of steps counted from the last, which training.steps: auto does not know."
        yield Problem("training.average", training.average, what, "Set it to 1, or give a number of steps.")


def _selection(sections: Sections) -> Iterator[Problem]:
    training, evaluation = sections.training, sections.evaluation
    if training and training.evaluate_every and evaluation and evaluation.judge is None:
        yield Problem(
            "training.evaluate_every",
            training.evaluate_every,
            "chooses by what a judge sees, and evaluation.judge names none.",
            "Name a judge, or omit it.",
        )


def _patterns(sections: Sections) -> Iterator[Problem]:
    targets = sections.adapter.targets if sections.adapter else []
    for pattern in targets if isinstance(targets, list) else []:
        try:
            re.compile(pattern)
        except re.error as error:
            yield Problem("adapter.targets", pattern, f"is not a regular expression: {error}.")


TOPICS: list[Callable[[Sections], Iterator[Problem]]] = [
    _pickles,
    _data,
    *CONCEPTS,
    _micro_batches,
    _one_pass,
    _sharding,
    _family,
    _offloaded_search,
    _no_steps,
    _until_gone,
    _selection,
    _patterns,
]
