"""What the tables of the recipe have in common: their base, what is in them, and what to say of bad values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.registry import Registry
from erasediff_lora.storage.paths import expanded

if TYPE_CHECKING:
    from erasediff_lora.recipe.checks import Sections


LARGEST_NUMBER = 2**32
"""Seeds of other programs go up to here; nothing else comes near."""


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before", check_fields=False)
    @classmethod
    def _refuse_misfits(cls, value: Any, about: ValidationInfo) -> Any:
        refuse_misfit(value, cls.model_fields[str(about.field_name)].annotation)
        return value

    @field_validator("*", check_fields=False)
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, int) and value > LARGEST_NUMBER:
            raise ValueError(f"is more than {LARGEST_NUMBER}. Correct the value.")
        try:
            return expanded(value, "path") if isinstance(value, Path) else value
        except UserError as error:
            raise ValueError(error.problems[0].what) from None

    def check(self, sections: Sections) -> list[Problem]:
        """What is wrong between these fields and those of the recipe's other tables.

        Args:
            sections: The tables that are valid by themselves, this one among them.
        """
        return []

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        """What a recipe has in place of this table, as the mapping that it stands for."""
        return given or {}

    @classmethod
    def table(cls, name: str, given: Any) -> type[Section]:
        """The class by which given values are checked: this one, unless registered parts bring their own.

        Args:
            name: What the recipe calls the table.
            given: Its values, spelled out.

        Raises:
            UserError: If the values name a part that there is not.
        """
        return cls

    @classmethod
    def tables(cls) -> Sequence[type[Section]]:
        """Every class that `table` can return, the default first."""
        return [cls]

    @classmethod
    def default(cls) -> Self:
        """The table of a recipe that says nothing about it."""
        settings: Self = cls.tables()[0]()  # type: ignore[assignment]
        return settings


class Variant(Section):
    """A table that a registered part brings, as its `Settings`; one field says which part."""

    parts: ClassVar[Registry]
    selector: ClassVar[str]

    @classmethod
    def spelled_out(cls, given: Any) -> Any:
        return {cls.selector: given} if isinstance(given, str) and given else super().spelled_out(given)

    @classmethod
    def table(cls, name: str, given: Any) -> type[Section]:
        if not isinstance(given, dict):
            return cls
        chosen = given.get(cls.selector, next(iter(cls.parts)))
        if not isinstance(chosen, str) or chosen not in cls.parts:
            raise UserError(Problem(f"{name}.{cls.selector}", chosen, "is unknown.", nearest(str(chosen), cls.parts)))
        settings: type[Section] = cls.parts[chosen].Settings
        return settings

    @classmethod
    def tables(cls) -> Sequence[type[Section]]:
        return [part.Settings for part in cls.parts.values()]


def refuse_misfit(value: Any, annotation: Any) -> None:
    """Refuse what pydantic would take for something else.

    Raises:
        ValueError: For true or false where a number is wanted, and an empty text where a path is, which would stand for
            the folder that the command runs in.
    """
    if isinstance(value, bool) and not _takes(annotation, bool | str) and _takes(annotation, int | float):
        raise ValueError("is no number. Write one.")
    if value == "" and not _takes(annotation, str) and _takes(annotation, Path):
        raise ValueError("is empty. Write a path, or leave it out.")


def _takes(annotation: Any, kinds: Any) -> bool:
    """Whether a field may hold one of these types, or a list of them."""
    is_one = isinstance(annotation, type) and annotation is not type(None) and issubclass(annotation, kinds)
    return is_one or any(_takes(argument, kinds) for argument in get_args(annotation))


def one_of(parts: Registry) -> BeforeValidator:
    """Checks that a value names a registered part, with the message of a `Literal` of these names."""

    def check(value: Any) -> Any:
        if value not in parts:
            *others, last = (repr(name) for name in parts)
            expected = f"{', '.join(others)} or {last}" if others else last
            raise PydanticKnownError("literal_error", {"expected": expected})
        return value

    return BeforeValidator(check)


def section_types(model: type[BaseModel]) -> Iterator[tuple[str, type[Section]]]:
    """Yield the fields of a recipe model that are tables themselves, with their types."""
    for name, field in model.model_fields.items():
        options = getattr(field.annotation, "__args__", (field.annotation,))
        for option in options:
            if isinstance(option, type) and issubclass(option, Section):
                yield name, option


def restated(section: str, model: type[BaseModel], error: Any) -> Problem:
    """One of pydantic's errors about a table, in our words."""
    location = [section, *(str(part) for part in error["loc"])]
    field, value, context = ".".join(location), error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            known = _fields_at(model, error["loc"][:-1])
            return Problem(field, value, "is unknown.", nearest(str(error["loc"][-1]), known))
        case "missing":
            return Problem(field, None, "is required.", "Add it to the recipe.")
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return Problem(field, value, f"must be {context['expected']}.", nearest(str(value), choices))
        case "list_type" if isinstance(value, str):
            return Problem(field, value, "is no list.", f"Write [{value}].")
        case "dict_type" | "model_type" if not isinstance(value, dict):
            return Problem(field, value, "is no table.", "Write {NAME: VALUE}.")
        case "value_error":
            return Problem(field, str(value) if isinstance(value, Path) else value, str(context["error"]))
        case _:
            return Problem(field, value, error["msg"].replace("Input should", "must") + ".", "Correct the value.")


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The field names of the table that an error's location points into."""
    for part in location:
        if part in model.model_fields:
            model = _table_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _table_in(annotation: Any) -> type[BaseModel] | None:
    """The table that a field holds, or holds a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for argument in get_args(annotation) if (found := _table_in(argument))), None)
