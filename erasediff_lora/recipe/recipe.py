"""The recipe: one typed schema that is the YAML file, the command-line flags and the Python API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, TypeAdapter, ValidationError

from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe import shipped
from erasediff_lora.recipe.adversary import Adversary
from erasediff_lora.recipe.checks import Sections, cross_check
from erasediff_lora.recipe.concept_lists import beside, expand, file_of
from erasediff_lora.recipe.data_checks import check_places
from erasediff_lora.recipe.evaluation import Evaluation
from erasediff_lora.recipe.protocols import filled, over_recipe
from erasediff_lora.recipe.renames import current_keys, current_names
from erasediff_lora.recipe.schema import Section, refuse_misfit, restated, section_types
from erasediff_lora.recipe.tables import (
    AdapterSettings,
    ForgetSet,
    Model,
    ObjectiveSettings,
    RetainSet,
    Sampling,
    Training,
)
from erasediff_lora.recipe.yaml_io import overlay, parse_yaml, read_yaml
from erasediff_lora.storage.files import sha256
from erasediff_lora.storage.inside import inside
from erasediff_lora.storage.paths import expanded

RUN_RECIPE = "recipe.yaml"
"""In the folder of a run."""
RESULT_SECTIONS = {"model", "forget", "retain", "sampling", "adapter", "objective", "adversary", "training"}
FREE_FIELDS = {
    *("steps", "max_steps", "gone", "threads", "checkpoint_every", "keep_checkpoints", "sample_every"),
    *("log_with", "check_memory", "shard"),
}
"""Fields of `training` that may differ when a run is resumed."""


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
    """Everything a run depends on.

    >>> recipe = Recipe.load("sd15_artist_style", {"training.steps": 200})
    """

    preset: Literal["plain", "robust"] = Field(
        "plain", description="robust: against what brings the concept back by another name; takes longer"
    )
    model: Model = Field(default_factory=Model)
    forget: ForgetSet
    retain: RetainSet
    sampling: Sampling = Field(default_factory=Sampling)
    adapter: SerializeAsAny[AdapterSettings] = Field(default_factory=lambda: AdapterSettings.default())
    objective: SerializeAsAny[ObjectiveSettings] = Field(default_factory=lambda: ObjectiveSettings.default())
    adversary: Adversary = Field(default_factory=Adversary)
    training: Training = Field(default_factory=Training)
    evaluation: SerializeAsAny[Evaluation] = Field(default_factory=lambda: Evaluation.default())
    output: Path = Field(Path("runs/erasure"), description="folder of the run")
    cache: Path = Field(Path("~/.cache/erasediff-lora"), description="folder of encoded data sets and drawn pictures")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Recipe:
        """Validate a nested mapping.

        Args:
            values: As the YAML file has them.

        Raises:
            UserError: With every problem found, in the fields and between them.
        """
        return cls._parse(values, [])

    @classmethod
    def load(cls, path: Path | str, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe and lay dotted overrides (`{"training.steps": 200}`) over it.

        Args:
            path: A YAML file, or the name of a shipped recipe where there is no such file.
            overrides: Dotted names of fields or tables -> values.

        Raises:
            UserError: If the file is not readable as a recipe, or holds bad values.
        """
        file = shipped.find(path)
        values, problems = current_names(beside(read_yaml(file), file.parent))
        changes, further = current_keys(overrides or {})
        return cls._parse(overlay(values, over_recipe(changes)), problems + further)

    @classmethod
    def of_run(cls, folder: Path | str, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe in the folder of a run, which a stranger may have made: it depends on no file beside it.

        Args:
            folder: Of the run.
            overrides: As for `load`, by the user: `model.allow_pickle` counts only here.

        Raises:
            UserError: As `load` does, and if it names lists in other files, or wants pickles opened.
        """
        place, changes = Path(folder), dict(overrides or {})
        if inside(place, RUN_RECIPE) is None:
            raise UserError(Problem("run", str(place), f"has no {RUN_RECIPE}.", "Give the folder of a run."))
        if problems := _foreign(read_yaml(place / RUN_RECIPE), changes):
            raise UserError(*problems)
        return cls.load(place / RUN_RECIPE, changes)

    @classmethod
    def _parse(cls, values: Mapping[str, Any], problems: list[Problem]) -> Recipe:
        given, found = current_names(values)
        problems = problems + found
        for name in given.keys() - cls.model_fields.keys():
            problems.append(Problem(name, given[name], "is unknown.", nearest(name, cls.model_fields)))
        tables = dict(section_types(cls))
        given |= {name: table.spelled_out(given.get(name)) for name, table in tables.items()}
        given["evaluation"] = filled(given["evaluation"])
        lists = expand(given)
        given = _with_preset(lists.values)
        problems += lists.problems
        fields: dict[str, Any] = {}
        for name in (name for name in cls.model_fields if name not in lists.unread):
            try:
                fields[name] = cls._table(name, given[name]) if name in tables else cls._value(name, given)
            except UserError as error:
                problems += error.problems
        problems += cross_check(Sections(**{name: fields[name] for name in tables if name in fields}))
        problems += check_places(fields)
        if problems:
            raise UserError(*lists.located(problems))
        if fields["adapter"].trains_base and fields["model"].dtype == "auto":
            fields["model"] = fields["model"].model_copy(update={"dtype": "float32"})
        return cls.model_construct(**fields)

    @classmethod
    def _table(cls, name: str, given: Any) -> Section:
        table = dict(section_types(cls))[name].table(name, given)
        try:
            return table.model_validate(given)
        except ValidationError as error:
            raise UserError(*(restated(name, table, detail) for detail in error.errors())) from None

    @classmethod
    def _value(cls, name: str, given: Mapping[str, Any]) -> Any:
        field = cls.model_fields[name]
        value = given[name] if name in given else field.get_default(call_default_factory=True)
        try:
            annotation: Any = Annotated[field.annotation, field]
            refuse_misfit(value, field.annotation)
            value = TypeAdapter(annotation).validate_python(value)
            return expanded(value, name) if isinstance(value, Path) else value
        except ValidationError as error:
            raise UserError(*(restated(name, cls, detail) for detail in error.errors())) from None
        except ValueError as error:
            raise UserError(Problem(name, value, str(error))) from None

    @property
    def steps(self) -> int:
        """Outer steps that are taken; of `training.steps: auto` the most."""
        return 0 if self.objective.closed_form else self.training.most_steps

    @property
    def starts_from_closed_form(self) -> bool:
        """Whether the adapter starts with the names forgotten."""
        return self.objective.closed_form or self.adapter.start == "closed_form"

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


def _foreign(values: Mapping[str, Any], changes: Mapping[str, Any]) -> list[Problem]:
    """What no run writes into its recipe, but somebody who wants to read or to run something here might."""
    problems = []
    for table, key in (("forget", "concepts"), ("retain", "concepts"), ("retain", "vocabulary")):
        inner = values.get(table)
        given, field = inner.get(key) if isinstance(inner, dict) else None, f"{table}.{key}"
        if file_of(given) is not None and field not in changes:
            what = f"is a list in a file, which the recipe of a run ({RUN_RECIPE}) does not name."
            problems.append(Problem(field, given, what, f"If you trust it, add --{field} {file_of(given)}."))
    model = values.get("model")
    if isinstance(model, dict) and model.get("allow_pickle") and "model.allow_pickle" not in changes:
        what = "opens pickles, which can run code, and stands in the recipe of a run."
        remedy = "If you trust the base, add --model.allow_pickle true."
        problems.append(Problem("model.allow_pickle", model["allow_pickle"], what, remedy))
    return problems


def _with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values, over those of their preset; tables spelled out."""
    filled = dict(given)
    preset = given.get("preset")
    for dotted, value in PRESETS.get(preset, {}).items() if isinstance(preset, str) else ():
        section, name = dotted.split(".")
        values = filled[section]
        if not isinstance(values, dict):
            continue
        try:
            table = dict(section_types(Recipe))[section].table(section, values)
        except UserError:  # it is said when the table is read
            continue
        own = getattr(table, "presets", {}).get(str(values.get("preset")), {})  # the method's own: it fills these
        if name in table.model_fields and name not in own:
            filled[section] = {name: value} | values
    return filled


def flags(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (dotted name, description, default) of every field of the schema; those of all variants, once each."""
    tables = dict(section_types(model))
    for name, field in model.model_fields.items():
        if name in tables:
            rows: dict[str, tuple[str, str, Any]] = {}
            for variant in tables[name].tables():
                for row in flags(variant, f"{prefix}{name}."):
                    rows.setdefault(row[0], row)
            yield from rows.values()
        else:
            default = "required" if field.is_required() else field.get_default(call_default_factory=True)
            yield prefix + name, field.description or "", default
