"""Which concept a picture shows: what it is labelled with, held against what is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erasediff_lora.data.set_report import LeftOut
from erasediff_lora.recipe.names import folded, spellings

LABEL_COLUMNS = ("label",)
"""Columns and keys with labels, where the recipe's own is not there."""


@dataclass(frozen=True)
class Asked:
    """What a set is asked to show.

    Attributes:
        concepts: Their names; empty in a retain set that takes all.
        forgotten: Names of what is to be forgotten; empty in a forget set.
        folders: Whether a folder is a label even if it is not called like a concept.
        stated: The concept that all pictures show, whatever their labels say.
    """

    concepts: Sequence[str]
    forgotten: Sequence[str] = ()
    folders: bool = True
    stated: str | None = None

    def concept_of(
        self, labels: Sequence[str], folders: Sequence[str]
    ) -> tuple[str | None, tuple[LeftOut, str] | None]:
        """The concept of a picture; or why it is left out, and its label.

        Args:
            labels: What it is labelled with, mostly one or none.
            folders: That it lies in, the innermost last; they are labels where it has no others.
        """
        if self.stated is not None:
            return self.stated, None
        if not labels:
            known = [name for name in reversed(folders) if self._is_known(name)]
            labels = known[:1] or (folders[-1:] if self.folders else ())
        given = {folded(label) for label in labels}
        if (hit := next((name for name in self.forgotten if spellings(name) & given), None)) is not None:
            return None, (LeftOut.FORGOTTEN_LABEL, hit)
        if not labels:
            return None, None
        if not self.concepts:
            return labels[0], None
        if (hit := match(labels, self.concepts)) is not None:
            return hit, None
        return None, (LeftOut.OTHER_LABEL, ", ".join(labels))

    def _is_known(self, label: str) -> bool:
        return match([label], [*self.concepts, *self.forgotten]) is not None


def match(labels: Iterable[str], concepts: Iterable[str]) -> str | None:
    """The first concept that one of the labels names, in whatever case, with spaces, underscores or hyphens."""
    wanted = {folded(label) for label in labels}
    return next((concept for concept in concepts if folded(concept) in wanted), None)


def labels_in(values: Mapping[str, Any], column: str, names: Sequence[str] | None = None) -> list[str]:
    """What a row says that its picture shows.

    Args:
        values: The row.
        column: With the labels; LABEL_COLUMNS stand in for it.
        names: Of the classes, where labels are their numbers.

    Raises:
        ValueError: If that is no label.
    """
    value = next((values[name] for name in (column, *LABEL_COLUMNS) if values.get(name) is not None), None)
    given = value if isinstance(value, list) else [] if value is None else [value]
    labels = []
    for label in given:
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise ValueError(f"{label!r} is no label")
        if isinstance(label, int) and names is not None:
            if not 0 <= label < len(names):  # datasets writes -1 where there is none
                continue
            label = names[label]
        labels.append(str(label))
    return [label for label in labels if label.strip()]
