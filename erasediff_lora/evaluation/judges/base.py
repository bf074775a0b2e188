"""What the evaluation asks of a judge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from erasediff_lora.errors import Problem, UserError


class PictureJudge(Protocol):
    """Names what it recognises in each picture; `labels` is all that it could name."""

    @property
    def labels(self) -> set[str]: ...

    def recognise(self, images: list[Image.Image]) -> list[set[str]]: ...


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
