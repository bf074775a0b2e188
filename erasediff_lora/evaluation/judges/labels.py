"""A judge that answers in the recipe's words, by whatever labels it has for the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

from PIL import Image

from erasediff_lora.errors import Problem
from erasediff_lora.evaluation.judges.base import PictureJudge
from erasediff_lora.recipe.names import folded

FIELD = "evaluation.judge_labels"
CLOSE = 0.6
"""Likeness from which a label is worth suggesting."""


@dataclass(frozen=True)
class NamedJudge(PictureJudge):
    """Sees what a word stands for where the judge sees any of its labels.

    Attributes:
        judge: With labels of its own.
        words: What prompts name -> labels for it, folded. A word that there is no label for is not among them.
    """

    judge: PictureJudge
    words: Mapping[str, frozenset[str]]

    @property
    def labels(self) -> set[str]:
        return set(self.words)

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        seen = [{folded(label) for label in labels} for labels in self.judge.recognise(images)]
        return [{word for word, names in self.words.items() if names & labels} for labels in seen]


def labels_of(
    words: Iterable[str], given: Mapping[str, list[str]], labels: Collection[str]
) -> dict[str, frozenset[str]]:
    """The labels for each word: those that the recipe names, or the one that is spelled like it.

    Args:
        words: What prompts name.
        given: `evaluation.judge_labels`.
        labels: The judge's.
    """
    known = {folded(label) for label in labels}
    wanted = {word: {folded(label) for label in given.get(word, [word])} for word in words}
    return {word: frozenset(names & known) for word, names in wanted.items() if names & known}


def complaints(
    spec: str, forgotten: Iterable[str], given: Mapping[str, list[str]], labels: Collection[str]
) -> list[Problem]:
    """What is wrong between a recipe and its judge's labels: a forgotten concept must have one, or all is 'erased'.

    Args:
        spec: The recipe's judge.
        forgotten: The concepts.
        given: `evaluation.judge_labels`.
        labels: The judge's.
    """
    known = {folded(label) for label in labels}
    problems = [
        Problem(f"{FIELD}.{word}", label, f"is no label of {spec}.", nearest_labels(label, labels))
        for word, names in given.items()
        for label in names
        if folded(label) not in known
    ]
    for concept in forgotten:
        if concept not in given and folded(concept) not in known:
            what = f"has no label for {concept!r}, so it could not tell whether it is gone."
            remedy = f"{nearest_labels(concept, labels)} Map it: {FIELD}: {{{concept}: [LABEL, …]}}."
            problems.append(Problem("evaluation.judge", spec, what, remedy))
    return problems


def nearest_labels(word: str, labels: Collection[str], count: int = 3) -> str:
    """The labels most like a word, as a sentence; the first ones where none is like it."""

    def likeness(label: str) -> tuple[int, float]:
        ours, theirs = folded(word), folded(label)
        return len({*ours.split()} & {*theirs.split()}), SequenceMatcher(None, ours, theirs).ratio()

    spelled: dict[str, str] = {}
    for label in sorted(labels):
        spelled.setdefault(folded(label), label)
    close = sorted((label for label in spelled.values() if likeness(label) >= (0, CLOSE)), key=likeness, reverse=True)
    if close:
        return f"Nearest: {', '.join(map(repr, close[:count]))}."
    more = ", …" if len(spelled) > count else ""
    return f"It knows: {', '.join(map(repr, list(spelled.values())[:count]))}{more}."
