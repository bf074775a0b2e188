"""Conditions that bring a concept back: what is searched for in training, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from erasediff_lora.errors import Problem
from erasediff_lora.recipe.schema import Section
from erasediff_lora.registry import FAMILIES

if TYPE_CHECKING:
    from erasediff_lora.recipe.checks import Sections
    from erasediff_lora.recipe.tables import Model

SearchedIn = Literal["auto", "tokens", "outputs"]
IN_SPACE = (
    "where they are searched for: tokens, a word in the name's place, read by the text encoder; outputs,"
    " tokens of the text encoder's output behind the prompt's own, which it need not be in memory for"
)


def searched_in(space: str, model: Model) -> str:
    """Where conditions are searched for, by a field such as `adversary.space`: 'tokens' or 'outputs'."""
    return FAMILIES[model.family].searched_in if space == "auto" else space


def check_space(field: str, space: str, model: Model | None) -> list[Problem]:
    """Whether there is anything to search in."""
    if space not in ("outputs", "both") or model is None or FAMILIES[model.family].text_to_image:
        return []
    return [Problem(field, space, "is what text encoders hand out; this family has none.", "Omit it.")]


class Adversary(Section):
    """Conditions that bring the concept back, searched for as training goes on and trained against."""

    pool: int = Field(0, ge=0, description="conditions kept for a concept, the newest ones; 0: none")
    share: float = Field(0.5, gt=0, le=1, description="share of the forget batch that is trained under them")
    refresh_every: int = Field(5, ge=1, description="outer steps between searches for a new one")
    searches: int = Field(
        3, ge=1, description="concepts that are searched for at a time, in turn: those first that come back most"
    )
    steps: int = Field(20, ge=1, description="optimisation steps of a search")
    batch_size: int = Field(8, ge=1, le=65_536, description="forget pictures a step of the search")
    continued: float = Field(
        0.0, ge=0, le=1, description="share of the searches that go on from a condition of the pool; others start anew"
    )
    vectors: int = Field(1, ge=1, description="token embeddings of a condition")
    space: SearchedIn | Literal["both"] = Field(
        "auto",
        description=f"{IN_SPACE}; both: by turns; auto: both, or outputs where the family's encoders take gigabytes",
    )
    learning_rate: float = Field(0.15, gt=0, description="of AdamW, in units of the embeddings' spread")

    def check(self, sections: Sections) -> list[Problem]:
        return check_space("adversary.space", self.space, sections.model)

    def places(self, model: Model) -> list[str]:
        """The spaces that are searched in, by turns."""
        found = searched_in(self.space, model)
        by_turns = self.space == "auto" and found == "tokens" and FAMILIES[model.family].text_to_image
        return ["tokens", "outputs"] if by_turns or self.space == "both" else [found]

    def needs_encoders(self, model: Model) -> bool:
        """Whether the searches differentiate through the text encoders of this base."""
        return self.pool > 0 and "tokens" in self.places(model)
