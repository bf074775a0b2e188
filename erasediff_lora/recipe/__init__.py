"""The recipe: all that a run depends on, as YAML file, command-line flags and Python objects."""

from erasediff_lora.recipe.evaluation import Evaluation
from erasediff_lora.recipe.recipe import FREE_FIELDS, PRESETS, RESULT_SECTIONS, VARIANTS, Recipe, flags
from erasediff_lora.recipe.tables import (
    ADAPTERS,
    AdapterSettings,
    Adversary,
    Concept,
    ForgetSet,
    Images,
    Lora,
    Model,
    NoAdapter,
    RetainSet,
    Sampling,
    Training,
)

__all__ = [
    "ADAPTERS",
    "FREE_FIELDS",
    "PRESETS",
    "RESULT_SECTIONS",
    "VARIANTS",
    "AdapterSettings",
    "Adversary",
    "Concept",
    "Evaluation",
    "ForgetSet",
    "Images",
    "Lora",
    "Model",
    "NoAdapter",
    "Recipe",
    "RetainSet",
    "Sampling",
    "Training",
    "flags",
]
