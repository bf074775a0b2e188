"""The words among which neighbours of a forgotten concept are looked for: lists of the package, or a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from erasediff_lora import demo
from erasediff_lora.errors import Problem, UserError, nearest
from erasediff_lora.recipe.concept_lists import file_of, read_list
from erasediff_lora.recipe.names import folded

FIELD = "retain.vocabulary"
FOLDER = Path(__file__).parent / "vocabularies"
MOST_WORDS = 50_000


def shipped() -> dict[str, Path]:
    """Name -> list that comes with the package; vocabularies/README.md says where it is from, under which licence."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.txt"))}


def read_words(name: str | None) -> list[str]:
    """The words of a list, each once, whatever its case; those of all lists of the package without a name.

    Raises:
        UserError: If there is no such list, or it cannot be read.
    """
    known = shipped()
    if name is None:
        return _each_once(word for file in known.values() for word in _in_file(file))
    if name in known:
        return _each_once(_in_file(known[name]))
    if file_of(name) is None:
        remedy = f"{nearest(name, known)} Or give a file of words: words.txt."
        raise UserError(Problem(FIELD, name, "is no list of words.", remedy))
    return _each_once(_in_file(Path(name)))


def of_demo(forgotten: Iterable[str]) -> list[str]:
    """The words of the embedded model that are of one kind with what is forgotten."""
    names = set(forgotten)
    kinds = [kind for kind in (demo.CONCEPTS, demo.STYLES) if names & set(kind)]
    return [word for kind in kinds for word in kind]


def _in_file(file: Path) -> list[str]:
    words = []
    for entry in read_list(file, FIELD, most=MOST_WORDS):
        if not isinstance(entry.value, str) or not entry.value.strip():
            raise UserError(Problem(FIELD, str(file), f"line {entry.line} is no word.", "Write a word a line."))
        words.append(entry.value)
    return words


def _each_once(words: Iterable[str]) -> list[str]:
    kept: dict[str, str] = {}
    for word in words:
        kept.setdefault(folded(word), word)
    return list(kept.values())
