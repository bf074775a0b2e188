"""What the tables of the recipe have in common: their base, what is in them, and what to say of bad values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

from erasediff_lora.errors import Problem, nearest


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def section_types(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the fields of a recipe model that are tables themselves, with their types."""
    for name, field in model.model_fields.items():
        options = getattr(field.annotation, "__args__", (field.annotation,))
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
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
        case "value_error":
            return Problem(field, value, str(context["error"]))
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
