"""All that a recipe or a command can name, and where it is: one line each.

A new part is a file and a line here. Other packages add theirs without a line of ours, by entry points of the same
names: `[project.entry-points."erasediff_lora.objectives"]` and so on.

A part that has options in a recipe brings them as `Settings`, a `recipe.Section`: fields with their descriptions, which
become YAML keys and flags, and a `check(sections)` that returns `Problem`s between them and the recipe's other tables.
"""

from __future__ import annotations

from erasediff_lora.registry.lookup import Registry

_OBJECTIVES = "erasediff_lora.objectives"
_PARAMETERS = "erasediff_lora.training.parameters"
_FORMATS = "erasediff_lora.adapter.formats"
_METRICS = "erasediff_lora.evaluation.metrics"
_ATTACKS = "erasediff_lora.evaluation.attacks"

OBJECTIVES = Registry(
    "objectives",
    {
        "erasediff": f"{_OBJECTIVES}.erasediff:EraseDiff",
        "finetune": f"{_OBJECTIVES}.finetune:Finetune",
        "negative_gradient": f"{_OBJECTIVES}.negative_gradient:NegativeGradient",
        "saliency": f"{_OBJECTIVES}.saliency:Saliency",
        "selective_amnesia": f"{_OBJECTIVES}.selective_amnesia:SelectiveAmnesia",
        "esd": f"{_OBJECTIVES}.esd:Esd",
        "concept_ablation": f"{_OBJECTIVES}.concept_ablation:ConceptAblation",
        "blindspot": f"{_OBJECTIVES}.blindspot:Blindspot",
    },
)
"""Erasure methods: classes that are an `objectives.Objective`."""

PARAMETERS = Registry(
    "parameters",
    {"lora": f"{_PARAMETERS}.lora:LowRank", "none": f"{_PARAMETERS}.full:FullWeights"},
)
"""What is trained of a network: classes that are a `training.parameters.Trainable`."""

FORMATS = Registry(
    "formats",
    {"diffusers": f"{_FORMATS}.diffusers", "kohya": f"{_FORMATS}.kohya", "peft": f"{_FORMATS}.peft"},
)
"""Adapter files: modules or objects that are an `adapter.formats.Format`."""

METRICS = Registry(
    "metrics",
    {
        name: f"{_METRICS}.{name}"
        for name in ("accuracy", "distances", "drift", "clip_score", "nudity", "strength_sweep")
    },
)
"""What an evaluation measures."""

ATTACKS = Registry(
    "attacks",
    {
        name: f"{_ATTACKS}.{name}"
        for name in ("paraphrases", "inversion", "adversarial_prompt", "latent_start", "relearning")
    },
)
"""Ways to make an erased model draw the concept."""

__all__ = ["ATTACKS", "FORMATS", "METRICS", "OBJECTIVES", "PARAMETERS", "Registry"]
