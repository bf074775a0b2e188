"""Base of every table of the recipe."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
