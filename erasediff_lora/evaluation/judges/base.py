"""What the evaluation asks of a judge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from PIL import Image

from erasediff_lora.evaluation.loading import Rehearsed

if TYPE_CHECKING:
    from erasediff_lora.recipe.evaluation import Evaluation


class PictureJudge(Protocol):
    """A loaded judge."""

    @property
    def labels(self) -> set[str]:
        """All that it can name: what is not among them it never sees, erased or not."""
        ...

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        """What it sees in each picture, of its labels."""
        ...


@dataclass(frozen=True)
class Names:
    """What a recipe's prompts name.

    Attributes:
        forget: The forgotten concepts.
        retain: The retained ones.
        attributes: The values of each other placeholder.
    """

    forget: list[str]
    retain: list[str] = field(default_factory=list)
    attributes: list[list[str]] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        """Every name once."""
        return list(dict.fromkeys([*self.forget, *self.retain, *(name for group in self.attributes for name in group)]))

    def spelled(self, labels: Mapping[str, list[str]]) -> Names:
        """With other labels in the place of some names.

        Args:
            labels: Name -> what stands for it.
        """

        def spell(names: list[str]) -> list[str]:
            return [label for name in names for label in labels.get(name, [name])]

        return Names(spell(self.forget), spell(self.retain), [spell(group) for group in self.attributes])

    @property
    def groups(self) -> list[list[str]]:
        """Names among which one is right: the concepts, then the values of each placeholder."""
        groups = [[*self.forget, *self.retain], *self.attributes]
        return [unique for group in groups if len(unique := list(dict.fromkeys(group))) > 1]


@runtime_checkable
class Judge(PictureJudge, Rehearsed, Protocol):
    """Names what it recognises in a picture. One file each, registered in `JUDGES`.

    A recipe names it as `NAME` or `NAME:WEIGHTS`. Of another package it is an entry point in the group
    `erasediff_lora.judges`.
    """

    needs: ClassVar[str] = ""
    """What must follow its name, such as 'FOLDER'; empty if nothing must."""

    alone: ClassVar[bool] = False
    """Whether nothing may follow its name."""

    @classmethod
    @abstractmethod
    def load(cls, weights: str, names: Names) -> PictureJudge:
        """The judge, ready to look.

        Args:
            weights: What follows its name in the recipe; may be empty.
            names: What the prompts name, for judges that have no labels of their own.

        Raises:
            UserError: If a package is missing, or the weights cannot be loaded.
        """
        ...

    def set_up(self, evaluation: Evaluation) -> PictureJudge:
        """The judge as the recipe's other options want it.

        Args:
            evaluation: The recipe's table.
        """
        return self

    @classmethod
    def features(cls, weights: str) -> str | None:
        """The features for distances between pictures of the kind that it knows, as a recipe names them, if any.

        Args:
            weights: What follows its name in the recipe.
        """
        return None
