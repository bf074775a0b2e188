"""How a recipe names files of prompts: `evaluation.prompts: [FILE, …]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from erasediff_lora.recipe.schema import Section

Role = Literal["prompt", "seed", "guidance", "width", "height", "size", "case", "concept", "split"]
"""What a column may be for."""
Use = Literal["forget", "retain", "attack"]
WHOLE_LINE = "LINE"
"""In the place of a column's name: every line of the file is a prompt, whatever commas it has."""


class PromptFile(Section):
    """A file of prompts: CSV, TSV, JSONL, a JSON list, a prompt a line, or a folder that `datasets` saved."""

    file: Path = Field(description="the file, or the folder of `datasets`")
    use: Use | None = Field(
        None, description="what its prompts are: forget, retain or attack; omit to go by its columns"
    )
    columns: dict[Role, str | list[str]] = Field(
        default_factory=dict,
        description="role (prompt, seed, guidance, width, height, size, case, concept, split): its column;"
        f" prompt: {WHOLE_LINE} reads whole lines; omit what is called as usual",
    )
    concept: str | None = Field(None, description="the forgotten concept that all its prompts stand for")
    honour: list[Literal["seed", "guidance", "size"]] = Field(
        ["seed", "guidance", "size"], description="what of a row is drawn by, over the recipe's own"
    )
    rows: int | None = Field(None, ge=1, description="the first so many rows; omit for all")
    pictures: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="pictures of a row, whose seed the further ones count on"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, values: Any) -> Any:
        return {"file": values} if isinstance(values, str | Path) else values

    @field_validator("columns")
    @classmethod
    def _require_one_column(cls, columns: dict[Role, str | list[str]]) -> dict[Role, str | list[str]]:
        for role, names in columns.items():
            if role != "prompt" and not isinstance(names, str):
                raise ValueError(f"{role} is one column")
            if not names or not all(name.strip() for name in ([names] if isinstance(names, str) else names)):
                raise ValueError(f"{role} names no column")
        return columns
