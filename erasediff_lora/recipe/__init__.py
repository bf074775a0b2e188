"""The recipe: all that a run depends on, as YAML file, command-line flags and Python objects."""

from erasediff_lora.recipe.adversary import Adversary
from erasediff_lora.recipe.checks import Sections
from erasediff_lora.recipe.evaluation import Evaluation
from erasediff_lora.recipe.recipe import FREE_FIELDS, PRESETS, RESULT_SECTIONS, Recipe, flags
from erasediff_lora.recipe.schema import Section, one_of
from erasediff_lora.recipe.tables import (
    AdapterSettings,
    Concept,
    ForgetSet,
    Images,
    Model,
    ObjectiveSettings,
    RetainSet,
    Sampling,
    Training,
)

__all__ = [
    "FREE_FIELDS",
    "PRESETS",
    "RESULT_SECTIONS",
    "AdapterSettings",
    "Adversary",
    "Concept",
    "Evaluation",
    "ForgetSet",
    "Images",
    "Model",
    "ObjectiveSettings",
    "Recipe",
    "RetainSet",
    "Sampling",
    "Section",
    "Sections",
    "Training",
    "flags",
    "one_of",
]
