"""What the evaluation asks of a judge."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from PIL import Image

from erasediff_lora.errors import Problem, UserError


class PictureJudge(Protocol):
    """A loaded judge."""

    @property
    def labels(self) -> set[str]:
        """All that it can name."""
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
    def groups(self) -> list[list[str]]:
        """Names among which one is right: the concepts, then the values of each placeholder."""
        groups = [[*self.forget, *self.retain], *self.attributes]
        return [unique for group in groups if len(unique := list(dict.fromkeys(group))) > 1]


@contextmanager
def loading(field: str, value: str, extra: str | None = None) -> Iterator[None]:
    """Turn what a loader raises into an error that says which package or which weights are missing.

    Args:
        field: The recipe's field that asked for it.
        value: What stands there.
        extra: What `pip install` brings the package.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            Problem(field, value, f"needs a package: {error}.", f"Run: pip install '{extra or error.name}'.")
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            Problem(
                field,
                value,
                f"cannot be loaded: {type(error).__name__}: {reason}",
                "Point it at a local folder or file with the weights, or at a hub id within reach.",
            )
        ) from error


class Judge(PictureJudge, Protocol):
    """Names what it recognises in a picture. One file each, registered in `JUDGES`.

    A recipe names it as `NAME` or `NAME:WEIGHTS`. Of another package it is an entry point in the group
    `erasediff_lora.judges`.
    """

    needs: ClassVar[str] = ""
    """What must follow its name, such as 'FOLDER'; empty if nothing must."""

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

    @classmethod
    def features(cls, weights: str) -> str | None:
        """The features for distances between pictures of the kind that it knows, as a recipe names them, if any.

        Args:
            weights: What follows its name in the recipe.
        """
        return None
