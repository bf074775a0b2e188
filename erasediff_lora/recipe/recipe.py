"""The recipe: one typed schema that is the YAML file, the command-line flags and the Python API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, TypeAdapter, ValidationError

from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.objectives.base import ObjectiveSettings
from erasediff_lora.objectives.erasediff import EraseDiffSettings
from erasediff_lora.recipe.checks import cross_check
from erasediff_lora.recipe.evaluation import Evaluation
from erasediff_lora.recipe.schema import Section, restated, section_types
from erasediff_lora.recipe.tables import (
    ADAPTERS,
    AdapterSettings,
    Adversary,
    ForgetSet,
    Lora,
    Model,
    RetainSet,
    Sampling,
    Training,
)
from erasediff_lora.recipe.yaml_io import overlay, parse_yaml, read_yaml
from erasediff_lora.registry import OBJECTIVES
from erasediff_lora.storage.files import sha256

RESULT_SECTIONS = {"model", "forget", "retain", "sampling", "adapter", "objective", "adversary", "training"}
FREE_FIELDS = {
    *("steps", "threads", "checkpoint_every", "keep_checkpoints", "sample_every"),
    *("log_with", "check_memory", "shard"),
}
"""Fields of `training` that may differ when a run is resumed."""


VARIANTS: dict[str, tuple[str, dict[str, type[Section]]]] = {
    "adapter": ("kind", dict(ADAPTERS)),
    "objective": ("name", {name: method.Settings for name, method in OBJECTIVES.items()}),
}
"""Section -> the field that says which of several tables it is, and those tables, the default first."""


PRESETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "robust": {
        "adapter.rank": 8,
        "objective.retain_target": "base",
        "objective.picture_guidance": 0.85,
        "adversary.pool": 64,
        "retain.focus": 0.5,
        "retain.contrast": 0.25,
        "retain.high_noise": 0.5,
        "training.average": 2,
    },
}
"""Preset -> values of the fields that a recipe leaves open and its tables have."""


class Recipe(Section):
    """Everything a run depends on."""

    preset: Literal["plain", "robust"] = Field(
        "plain", description="robust: against what brings the concept back by another name; takes longer"
    )
    model: Model = Field(default_factory=Model)
    forget: ForgetSet
    retain: RetainSet
    sampling: Sampling = Field(default_factory=Sampling)
    adapter: SerializeAsAny[AdapterSettings] = Field(default_factory=Lora)
    objective: SerializeAsAny[ObjectiveSettings] = Field(default_factory=EraseDiffSettings)
    adversary: Adversary = Field(default_factory=Adversary)
    training: Training = Field(default_factory=Training)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    output: Path = Field(Path("runs/erasure"), description="folder of the run")
    cache: Path = Field(Path("~/.cache/erasediff-lora"), description="folder of encoded data sets and drawn pictures")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Recipe:
        """Validate a nested mapping.

        Raises:
            UserError: With every problem found, in the fields and between them.
        """
        sections: dict[str, Any] = {}
        problems: list[Problem] = []
        values = _with_preset(values)
        for name in values.keys() - cls.model_fields.keys():
            problems.append(Problem(name, values[name], "is unknown.", nearest(name, cls.model_fields)))
        for name, field in cls.model_fields.items():
            if name in values or field.is_required():
                given = values.get(name) or {} if name in cls._tables() else values[name]
                annotation: Any = Annotated[field.annotation, field]
                table: Any = field.annotation
                if name in VARIANTS:
                    selector, variants = VARIANTS[name]
                    if isinstance(given, str):  # `adapter: none`
                        given = {selector: given}
                    kind = given.get(selector, next(iter(variants))) if isinstance(given, dict) else None
                    if kind is not None and (not isinstance(kind, str) or kind not in variants):
                        remedy = nearest(str(kind), variants)
                        problems.append(Problem(f"{name}.{selector}", kind, "is unknown.", remedy))
                        continue
                    annotation = table = variants.get(kind, table)  # type: ignore[arg-type]
                try:
                    sections[name] = TypeAdapter(annotation).validate_python(given)
                except ValidationError as error:
                    problems += [restated(name, table, e) for e in error.errors()]
            else:
                sections[name] = field.get_default(call_default_factory=True)
        problems += cross_check(sections)
        if problems:
            raise UserError(*problems)
        if sections["adapter"].kind == "none" and sections["model"].dtype == "auto":
            sections["model"] = sections["model"].model_copy(update={"dtype": "float32"})
        return cls.model_construct(**sections)

    @classmethod
    def _tables(cls) -> set[str]:
        return {name for name, _ in section_types(cls)}

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a YAML file and lay dotted overrides (`{"training.steps": 200}`) over it.

        Raises:
            UserError: If the file is not readable as a recipe, or holds bad values.
        """
        return cls.parse(overlay(read_yaml(path), overrides or {}))

    def sha256(self) -> str:
        """Hash of all that determines the adapter: not where it is written, nor how it is evaluated."""
        return sha256(json.dumps(self.model_dump(mode="json", include=RESULT_SECTIONS), sort_keys=True).encode())

    def to_yaml(self) -> str:
        """The recipe in full, as `load` reads it."""
        values = self.model_dump(mode="json")
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        if parse_yaml(text) != values:  # Unicode's own line breaks do not survive unless they are escaped
            text = yaml.safe_dump(values, sort_keys=False)
        return text


def _with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, over those of their preset."""
    filled = dict(values)
    preset = values.get("preset")
    for dotted, value in PRESETS.get(preset, {}).items() if isinstance(preset, str) else ():
        section, name = dotted.split(".")
        table, model = filled.get(section) or {}, dict(section_types(Recipe))[section]
        if section in VARIANTS:
            selector, variants = VARIANTS[section]
            table = {selector: table} if isinstance(table, str) else table  # `objective: erasediff`
            kind = table.get(selector, next(iter(variants))) if isinstance(table, dict) else None
            model = variants.get(str(kind), model)
        if not isinstance(table, dict):
            continue
        chosen = getattr(model, "presets", {}).get(str(table.get("preset")), {})  # the method's own: it fills these
        if name in model.model_fields and name not in chosen:
            filled[section] = {name: value} | table
    return filled


def flags(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (dotted name, description, default) of every field of the schema; those of all variants, once each."""
    tables = dict(section_types(model))
    for name, field in model.model_fields.items():
        if name in tables and name in VARIANTS:
            rows = [row for variant in VARIANTS[name][1].values() for row in flags(variant, f"{prefix}{name}.")]
            yield from {row[0]: row for row in reversed(rows)}.values()
        elif name in tables:
            yield from flags(tables[name], f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else field.get_default(call_default_factory=True)
            yield prefix + name, field.description or "", default
