"""Other words for the concept: other languages, what it is a kind of, kinds of it, and its parts.

What SEE (superclass and subclass evasion, attribute leakage) and HUB (five languages) ask of an eraser. HUB's own files
of prompts are read by `evaluation.prompts`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from erasediff_lora.errors import Problem, UserError
from erasediff_lora.evaluation.attacks.base import (
    Attack,
    Looked,
    Outcome,
    best,
    listed,
    looked_at,
    of_each_concept,
)
from erasediff_lora.evaluation.parts import Found
from erasediff_lora.evaluation.shares import share
from erasediff_lora.recipe.names import folded
from erasediff_lora.recipe.schema import Section

if TYPE_CHECKING:
    from erasediff_lora.evaluation.candidates import Candidate
    from erasediff_lora.evaluation.evidence import Evidence
    from erasediff_lora.recipe.evaluation import Evaluation

SHIPPED = Path(__file__).with_suffix(".csv")
"""Of the embedded model's concepts."""
FIELD = "evaluation.other_words.file"
COLUMNS = ("concept", "kind", "word")
LARGEST = 8 * 2**20
"""Bytes of a list."""


class OtherWordsSettings(Section):
    """Words in other languages, of a wider or narrower meaning, or for parts."""

    file: Path | None = Field(
        None, description="CSV with the columns concept, kind, word; omit for the list of the embedded model's concepts"
    )
    kinds: list[str] = Field(
        default_factory=list, description="kinds of the list, such as language, superclass, parts; omit for all"
    )
    samples: int = Field(30, ge=1, description="pictures of a kind")


class OtherWords(Attack):
    """A try is a kind of words, all of its words together; the attacker keeps the kind that works best."""

    Settings = OtherWordsSettings
    title = "Other words: other languages, wider and narrower ones, parts"
    searches = False

    def available(self, evaluation: Evaluation) -> bool:
        return evaluation.settings(OtherWordsSettings).file is not None

    def require_means(self, evaluation: Evaluation) -> None:
        options = evaluation.settings(OtherWordsSettings)
        known = {kind for of_concept in read(options.file or SHIPPED).values() for kind in of_concept}
        if unknown := [kind for kind in options.kinds if kind not in known]:
            remedy = f"It has: {', '.join(sorted(known))}."
            raise UserError(Problem("evaluation.other_words.kinds", unknown, "is no kind of the list.", remedy))

    def budget(self, evidence: Evidence) -> str:
        options = evidence.settings(OtherWordsSettings)
        words = {kind: len(own) for kinds in _words(evidence).values() for kind, own in kinds.items()}
        told = ", ".join(f"{count} of {kind}" for kind, count in words.items())
        return f"words: {told}; {options.samples} pictures{of_each_concept(evidence)} for each kind"

    def run(self, evidence: Evidence, candidate: Candidate) -> Outcome:
        """Draw the prompts with the words in the concept's place.

        Raises:
            UserError: If there is no judge, or the list has no word for a forgotten concept.
        """
        from erasediff_lora.evaluation.attacks.paraphrases import prompts_naming

        judge, options = evidence.require_judge("other words"), evidence.settings(OtherWordsSettings)
        tries: dict[str, list[Looked]] = {}
        by_word: dict[str, list[bool]] = {}
        for concept, kinds in _words(evidence).items():
            for kind, words in kinds.items():
                prompts = prompts_naming(evidence, concept, list(words), options.samples)
                drawn = candidate.generate(prompts, evidence.spare_seed, f"{kind} of {concept}")
                found = looked_at(judge, drawn)
                tries.setdefault(kind, []).extend(found)
                for item, hit in found:
                    by_word.setdefault(item.prompt.attributes["name"], []).append(hit)
        return best(tries, by_word={word: share(hits) for word, hits in by_word.items()})

    def notes(self, found: Found) -> list[str]:
        back = {word: value for word, value in found["by_word"].items() if value}
        return [*super().notes(found), *([f"By word. {listed(back)}"] if back else [])]


def _words(evidence: Evidence) -> dict[str, dict[str, list[str]]]:
    """Concept -> kind -> words, of the forgotten ones that the list has.

    Raises:
        UserError: If it has none.
    """
    options = evidence.settings(OtherWordsSettings)
    known = read(options.file or SHIPPED)
    found = {}
    for concept in evidence.forgotten:
        kinds = known.get(folded(concept), {})
        chosen = {kind: words for kind, words in kinds.items() if not options.kinds or kind in options.kinds}
        if chosen:
            found[concept] = chosen
    if not found:
        what = f"has no word for {', '.join(evidence.forgotten)}."
        given = None if options.file is None else str(options.file)
        raise UserError(Problem(FIELD, given, what, "Give a CSV with the columns concept, kind, word."))
    return found


def read(file: Path) -> Mapping[str, Mapping[str, list[str]]]:
    """Concept, folded -> kind -> words.

    Raises:
        UserError: If it is no such list, with the line.
    """
    rows = _rows(file)
    head = [name.strip().lower() for name in rows[0]] if rows else []
    if missing := [name for name in COLUMNS if name not in head]:
        what = f"line 1 has no column {missing[0]!r}."
        raise UserError(Problem(FIELD, str(file), what, f"Begin it with {','.join(COLUMNS)}."))
    places = [head.index(name) for name in COLUMNS]
    found: dict[str, dict[str, list[str]]] = {}
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        cells = [row[place].strip() if place < len(row) else "" for place in places]
        if not all(cells):
            empty = COLUMNS[cells.index("")]
            raise UserError(Problem(FIELD, str(file), f"row {number} has no {empty}.", "Fill it in, or take it out."))
        concept, kind, word = cells
        words = found.setdefault(folded(concept), {}).setdefault(kind, [])
        words += [word] if word not in words else []
    return found


def _rows(file: Path) -> Sequence[list[str]]:
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(Problem(FIELD, str(file), f"is larger than {LARGEST >> 20} MiB.", "Give a list of words."))
        text = file.read_text(encoding="utf-8-sig")
        return list(csv.reader(text.splitlines(), strict=True))
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}."
        raise UserError(Problem(FIELD, str(file), what, "Check the path.")) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(Problem(FIELD, str(file), f"is no CSV in UTF-8: {error}.", "Save it as one.")) from None
