"""What is near to a forgotten concept, as the base's text encoder sees it: anchors and neighbours.

A recipe may leave both open (`anchor: auto`, `retain.neighbours: 5`). They are found before anything else, and are part
of the recipe from then on. Nearness is the cosine of the words' embeddings less the mean of those that are looked
through: encoders put all words into a narrow cone, and without its axis 20 of the 20 synonyms that the embedded model
learned are nearest to their concept, with it 17.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from erasediff_lora.denoisers import Denoiser
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import Concept, Recipe, vocabulary
from erasediff_lora.recipe.concept_checks import chosen_by_encoder
from erasediff_lora.recipe.names import folded, plural
from erasediff_lora.storage import checksummed
from erasediff_lora.storage.files import sha256, write_text
from erasediff_lora.storage.locks import making
from erasediff_lora.storage.run_folder import NEAR_FILE

log = logging.getLogger(__name__)
FORMAT = 1
CONCEPTS_AT_ONCE = 256
SHOWN = 20
"""Concepts that the log tells about; all are in the run's folder."""

Found = list[tuple[str, float]]
"""Words with the cosine of their embedding and the concept's, the nearest first."""


@dataclass
class _Words:
    """Words and their embeddings.

    Attributes:
        words: N of them.
        vectors: (N, E), float32, on the CPU.
    """

    words: Sequence[str]
    vectors: Tensor

    def __getitem__(self, rows: Sequence[int]) -> _Words:
        return _Words([self.words[row] for row in rows], self.vectors[list(rows)])

    def nearest(self, concepts: _Words, count: int) -> Iterator[tuple[str, Found]]:
        """Of each concept the words that are nearest to it; of equally near ones the first in the list."""
        centre = self.vectors.mean(dim=0)
        ours = F.normalize(self.vectors - centre, dim=1)
        for start in range(0, len(concepts.words), CONCEPTS_AT_ONCE):
            theirs = F.normalize(concepts.vectors[start : start + CONCEPTS_AT_ONCE] - centre, dim=1)
            cosines = theirs @ ours.T
            values, rows = cosines.sort(dim=1, descending=True, stable=True)
            for name, near, at in zip(concepts.words[start:], values[:, :count], rows[:, :count], strict=False):
                yield name, [(self.words[row], value) for row, value in zip(at.tolist(), near.tolist(), strict=True)]


@dataclass
class _Choice:
    """What was found: concept -> words."""

    neighbours: dict[str, Found] = field(default_factory=dict)
    anchors: dict[str, Found] = field(default_factory=dict)


def choose_near(recipe: Recipe, denoiser: Denoiser, folder: Path | None = None) -> Recipe:
    """The recipe with the anchors and neighbours that it leaves to the text encoder; the same if it leaves none.

    Args:
        recipe: The recipe.
        denoiser: The base. Its encoders are used where the embeddings of the words are not in the cache.
        folder: Where to write what was found; None: nowhere.

    Raises:
        UserError: If no word is left, or the cache cannot be written.
    """
    count = recipe.retain.neighbours
    is_open = [chosen_by_encoder(concept, recipe.objective) for concept in recipe.forget.concepts]
    if not any(is_open) and (isinstance(count, dict) or count == 0):
        return recipe
    names = [concept.name for concept in recipe.forget.concepts]
    concepts = _Words(names, _embedded(recipe, denoiser, names))
    choice = _Choice()
    if isinstance(count, int) and count:
        choice.neighbours = _neighbours(recipe, denoiser, concepts, count)
        recipe = _with_neighbours(recipe, choice.neighbours)
    if any(is_open):
        choice.anchors = _anchors(recipe, denoiser, concepts[[row for row, is_one in enumerate(is_open) if is_one]])
        recipe = _with_anchors(recipe, choice.anchors)
    _tell("neighbours of %r: %s", choice.neighbours)
    _tell("anchor of %r: %s", choice.anchors)
    if folder is not None:
        _write(folder, choice)
    return recipe


def _neighbours(recipe: Recipe, denoiser: Denoiser, concepts: _Words, count: int) -> dict[str, Found]:
    words = vocabulary.read_words(recipe.retain.vocabulary)
    if recipe.model.base == "demo":  # it knows no other words
        words = vocabulary.of_demo(concepts.words)
    known = {folded(name): name for name in recipe.retain.concepts}
    words = [known.get(folded(word), word) for word in words]
    left = _Words(words, _embedded(recipe, denoiser, words))[_distinct(recipe, words)]
    if not left.words:
        what = "has no word that can be a neighbour: each is a part of what is to be forgotten, or contains it."
        raise UserError(Problem(vocabulary.FIELD, recipe.retain.vocabulary, what, "Name another list, or omit it."))
    if len(left.words) < count:
        log.warning("retain.neighbours: %d, and there are only %d words that can be one", count, len(left.words))
    return dict(left.nearest(concepts, count))


def _anchors(recipe: Recipe, denoiser: Denoiser, concepts: _Words) -> dict[str, Found]:
    words = recipe.retain.concepts
    left = _distinct(recipe, words)
    if not left:
        what = "leaves no anchor: each is a part of what is to be forgotten, or contains it."
        raise UserError(Problem("retain.concepts", words, what, "Add others, or name an anchor."))
    return dict(_Words(words, _embedded(recipe, denoiser, words))[left].nearest(concepts, 1))


def _with_neighbours(recipe: Recipe, found: dict[str, Found]) -> Recipe:
    words = {name: [word for word, _ in near] for name, near in found.items()}
    values = recipe.retain.model_dump() | {"neighbours": words, "vocabulary": None}
    return recipe.model_copy(update={"retain": type(recipe.retain).model_validate(values)})


def _with_anchors(recipe: Recipe, found: dict[str, Found]) -> Recipe:
    def anchored(concept: Concept) -> Concept:
        near = found.get(concept.name)
        return concept.model_copy(update={"anchor": near[0][0]}) if near else concept

    concepts = [anchored(concept) for concept in recipe.forget.concepts]
    return recipe.model_copy(update={"forget": recipe.forget.model_copy(update={"concepts": concepts})})


def _tell(text: str, found: dict[str, Found]) -> None:
    for name, near in list(found.items())[:SHOWN]:
        log.info(text, name, ", ".join(f"{word!r} ({cosine:.2f})" for word, cosine in near))
    if len(found) > SHOWN:
        log.info("and of %d further concepts: see %s", len(found) - SHOWN, NEAR_FILE)


def _write(folder: Path, choice: _Choice) -> None:
    """{'neighbours': {concept: [{'word': …, 'cosine': …}, …]}, 'anchors': …}; what was not looked for is empty."""
    shown: dict[str, Any] = {
        kind: {name: [{"word": word, "cosine": round(cosine, 6)} for word, cosine in near] for name, near in of.items()}
        for kind, of in vars(choice).items()
    }
    write_text(folder / NEAR_FILE, json.dumps(shown, indent=2, ensure_ascii=False) + "\n")


def _embedded(recipe: Recipe, denoiser: Denoiser, words: Sequence[str]) -> Tensor:
    """Embeddings of the words, (N, E), from the cache where they have been asked for before."""
    what = [FORMAT, denoiser.fingerprint, str(denoiser.dtype), denoiser.device.type, *words]
    file = recipe.cache.expanduser() / f"words-{sha256(json.dumps(what).encode())[:32]}.safetensors"
    if (found := checksummed.cached(file)) is None:
        with making(file, "embeddings of words"):
            if (found := checksummed.cached(file)) is None:
                log.info("encoding %d words, which are kept in %s", len(words), file)
                vectors = denoiser.embed_words(words).float().cpu()
                _require_finite(words, vectors, denoiser)
                checksummed.write({"vectors": vectors}, file)
                return vectors
    return found[0]["vectors"]


def _require_finite(words: Sequence[str], vectors: Tensor, denoiser: Denoiser) -> None:
    broken = (~torch.isfinite(vectors).all(dim=1)).nonzero().flatten().tolist()
    if broken:
        what = f"is encoded as NaN or Inf in {denoiser.dtype}, with {len(broken) - 1} more."
        raise UserError(Problem("retain.neighbours", words[broken[0]], what, "Use model.dtype: float32."))


def _distinct(recipe: Recipe, words: Sequence[str]) -> list[int]:
    """Which words neither name what is to be forgotten, nor are named in its names.

    'Tabby cat' names 'cat', and 'Gogh' is named in 'Vincent van Gogh': to retain them would work against the erasure.
    """
    names = [concept.name for concept in recipe.forget.concepts]
    names += [other for name in names for other in recipe.evaluation.other_names.get(name, ())]
    forgotten = {form for name in names for form in _forms(name)}
    parts = {part for form in forgotten for part in _parts(form)}

    def is_distinct(word: str) -> bool:
        forms = _forms(word)
        return not any(form in parts or not forgotten.isdisjoint(_parts(form)) for form in forms)

    return [row for row, word in enumerate(words) if is_distinct(word)]


def _forms(name: str) -> set[tuple[str, ...]]:
    """The words of a name in the singular and the plural, without case, accents and signs."""
    return {tuple(re.findall(r"\w+", _plain(form))) or (form,) for form in (name.strip(), plural(name.strip()))}


def _plain(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", folded(name)) if not unicodedata.combining(c))


def _parts(form: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """All that stands together in it, itself included."""
    return (form[start:end] for start in range(len(form)) for end in range(start + 1, len(form) + 1))
