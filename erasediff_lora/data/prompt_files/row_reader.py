"""What a row of a file says: prompts, what they stand for, and what they are drawn with."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from erasediff_lora.data.prompt_files.columns import (
    CAPTIONS,
    NAMES,
    PERHAPS_CONCEPT,
    SOURCE,
    SPLITS,
    Columns,
    spelled,
)
from erasediff_lora.data.prompt_files.table import Malformed, Row, Table
from erasediff_lora.data.prompts import Prompt, expand, is_named
from erasediff_lora.errors import Problem, UserError, brief, is_text
from erasediff_lora.recipe import ForgetSet, RetainSet
from erasediff_lora.recipe.names import few, folded, spellings
from erasediff_lora.recipe.prompt_files import PromptFile, Use

FIELD = "evaluation.prompts"
LONGEST = 20_000
"""Characters of a prompt."""
MOST_NAMES = 200
"""Retained concepts that are looked for in prompts which say nothing about theirs."""
NOTHING = ("", "nan", "none", "null", "na", "n/a", "#n/a", "<na>")
"""What an empty cell is called."""
TEMPLATE = re.compile(r"\{(" + "|".join((*NAMES["concept"], *PERHAPS_CONCEPT)) + r")\}", re.IGNORECASE)
"""A name that is still to be filled in."""
SEEDS = 2**63
SIDES = (8, 8192)
MOST_GUIDANCE = 1000
MOST_DIGITS = 30
"""Of numbers, before the point."""


class RowReader:
    """Makes prompts of rows.

    Args:
        given: How the recipe names the file.
        columns: Their roles.
        forget: For the concepts and the templates.
        retain: The same.
        table: All rows.
    """

    def __init__(self, given: PromptFile, columns: Columns, forget: ForgetSet, retain: RetainSet, table: Table) -> None:
        self.given, self.tables = given, (forget, retain)
        self.forgotten = {folded(concept.name): concept.name for concept in forget.concepts}
        self.by_spelling = {word: name for name in self.forgotten.values() for word in spellings(name)} | self.forgotten
        self.known: dict[str, str | None] = {}
        self.retained = {folded(name): name for name in retain.concepts[:MOST_NAMES]}
        self.words: dict[str, Use] = {word: use for use, words in SPLITS.items() for word in words}
        split = columns.roles.get("split")
        self.source = next((name for name in table.columns if spelled(name) == SOURCE), "")
        self.split = split if split and any(self._splits_of(row, split) for row in table.rows) else None
        self.aside = None if self.split else split
        roles = {role: name for role, name in columns.roles.items() if role != "split" or self.split}
        concepts = [name for name in columns.concepts if "concept" in given.columns or self._names(table, name)]
        if not columns.prompts and not concepts:
            concepts = list(columns.concepts)
        self.columns = replace(columns, concepts=concepts, roles=roles)
        if given.concept is not None and folded(given.concept) not in self.forgotten:
            known = ", ".join(self.forgotten.values())
            raise UserError(Problem(f"{FIELD}.concept", given.concept, "is not to be forgotten.", f"Name {known}."))

    def prompts(self, row: Row) -> list[tuple[Use, Prompt]]:
        """The row's prompts, each with its use.

        Raises:
            Malformed: If a value cannot be what its column is for.
        """
        use = self._use(row)
        seed, guidance, size = self._seed(row), self._guidance(row), self._size(row)
        case = str(row.values.get(self.columns.roles.get("case", ""), "") or "")
        found: list[tuple[Use, Prompt]] = []
        for text, attributes in self._texts(row, use):
            concept = self._concept(row, use, text)
            for number in range(self.given.pictures):
                own = None if seed is None else seed + number
                found.append((use, Prompt(text, concept, attributes, own, guidance, size, case)))
        return found

    def of_another(self, row: Row) -> str | None:
        """The concept that a row's split is to erase or attack, if the recipe does not forget it."""
        if self.given.use or self.given.concept or not self.split or (named := self._named(row)) is None:
            return None
        is_retained = self._splits_of(row, self.split) <= {"retain"}
        return None if is_retained or self._forgotten(named) else named

    def of_no_concept(self, others: Sequence[str]) -> Malformed:
        """The complaint about a file of which no row is left."""
        what = f"names {few(list(dict.fromkeys(others)))}, which the recipe does not forget, and nothing else."
        remedy = "Give the recipe that forgets it, or say what all stand for: {file: …, concept: …}."
        return Malformed(0, repr(self.columns.concepts[0]), what, remedy)

    def refuse_templates(self, table: Table) -> None:
        """Refuse a file of prompts whose names are still to be filled in.

        Raises:
            Malformed: If it is one.
        """
        first: Malformed | None = None
        for row, column in itertools.product(table.rows, self.columns.prompts):
            text = row.values.get(column)
            if not isinstance(text, str) or not text.strip():
                continue
            if (hole := TEMPLATE.search(text)) is None:
                return
            if first is None:
                what = f"is a template, whose {hole[0]} is to be filled."
                remedy = "Write it into forget.templates as {concept}, or fill it."
                first = Malformed(row.line, repr(column), what, remedy)
        if first is not None:
            raise first

    def _splits_of(self, row: Row, column: str) -> set[Use]:
        """What a split column says of a row: nothing that we know, one use, or several that contradict each other."""
        words = map(spelled, re.split(r"[,;|/+&]", str(row.values.get(column) or "")))
        bare = (re.sub(r"(?<=\w)_(set|split|prompts?|concepts?)$", "", word) for word in words)
        return {self.words[word] for word in bare if word in self.words}

    def _names(self, table: Table, column: str) -> bool:
        """Whether a column names concepts: more than numbers and, where it may mean something else, a forgotten one."""
        cells = [self._cell(row, column) for row in table.rows]
        if any(self._forgotten(cell) for cell in cells):
            return True
        return spelled(column) in NAMES["concept"] and any(_number(cell) is None for cell in cells if cell is not None)

    def _forgotten(self, named: Any) -> str | None:
        """The forgotten concept of that name, in the singular or the plural, or one of several names."""
        if not isinstance(named, str):
            return None
        if named not in self.known:
            names = [named, *re.split(r"[,;|]", named)]
            words = [word for name in names for word in sorted(spellings(name), key=lambda word: word != folded(name))]
            self.known[named] = next((self.by_spelling[word] for word in words if word in self.by_spelling), None)
        return self.known[named]

    def _named(self, row: Row) -> str | None:
        """What the row's columns of concepts name: what is to be forgotten, if one of them does."""
        cells = [self._cell(row, column) for column in self.columns.concepts]
        texts = [cell.strip() for cell in cells if isinstance(cell, str)]
        return next((text for text in texts if self._forgotten(text)), texts[0] if texts else None)

    def _use(self, row: Row) -> Use:
        if self.given.use is not None:
            return self.given.use
        if self.split is not None:
            uses = self._splits_of(row, self.split)
            if len(uses) != 1:
                what = "is several of" if uses else "is none of"
                remedy = "Write one, or say what all are: --use forget."
                raise self._bad(row, "split", f"{what} erase, retain, attack, or other words for them.", remedy)
            return uses.pop()
        if self.columns.adversarial:
            return "attack"
        if self.columns.captions or spelled(str(row.values.get(self.source) or "")).startswith(CAPTIONS):
            return "retain"
        named = self._named(row)
        return "retain" if named is not None and not self._forgotten(named) else "forget"

    def _texts(self, row: Row, use: Use) -> list[tuple[str, dict[str, str]]]:
        """Prompts, those of several columns with the column's name; of a concept alone a filled template.

        None where there is none: a row of I2P has an empty one.
        """
        if not self.columns.prompts:
            column = self.columns.concepts[0]
            name = row.values.get(column)
            if not isinstance(name, str) or not is_text(name):
                raise self._bad(row, "concept", "is no name.", "Write one.", column)
            if not (name := name.replace("_", " ").strip()):
                return []
            tables = self.tables[use == "retain"]
            own = [text for text in tables.templates if "{concept}" in text] or ["a photo of a {concept}"]
            prompt = expand(own, [name], tables.placeholders)[0]
            return [(prompt.text, {})]
        several = len(self.columns.prompts) > 1
        found = []
        for column in self.columns.prompts:
            text = row.values.get(column)
            if text is None or (isinstance(text, float) and math.isnan(text)):
                continue
            if not isinstance(text, str):
                raise self._bad(row, "prompt", "is no text.", "Write a prompt, or take the row out.", column)
            if not is_text(text):
                raise self._bad(row, "prompt", "has half of a character.", "Correct the text.", column)
            if not (text := text.strip()):
                continue
            if len(text) > LONGEST:
                what = f"has {len(text):,} characters."
                raise Malformed(row.line, repr(column), what, f"Up to {LONGEST:,} are read.")
            found.append((text, {"column": column} if several else {}))
        return found

    def _concept(self, row: Row, use: Use, text: str) -> str | None:
        """What the prompt stands for."""
        if use == "retain":
            if (named := self._named(row)) is not None:
                return self.retained.get(folded(named), named)
            found = [name for name in self.retained.values() if is_named(text, name)]
            return found[0] if len(found) == 1 else None
        if self.given.concept is not None:
            return self.forgotten[folded(self.given.concept)]
        if (known := self._forgotten(self._named(row))) is not None:
            return known
        if len(self.forgotten) == 1:
            return next(iter(self.forgotten.values()))
        found = [name for name in self.forgotten.values() if is_named(text, name)]
        if len(found) != 1:
            what = f"names {'none' if not found else 'several'} of the concepts to be forgotten: {brief(text)}."
            column = repr(self.columns.prompts[0]) if self.columns.prompts else "concept"
            raise Malformed(row.line, column, what, "Add a column 'concept', or say which: {file: …, concept: …}.")
        return found[0]

    def _seed(self, row: Row) -> int | None:
        return self._whole(row, "seed", 0, SEEDS - 1000) if "seed" in self.given.honour else None

    def _guidance(self, row: Row) -> float | None:
        if "guidance" not in self.given.honour or (value := self._value(row, "guidance")) is None:
            return None
        number = _number(value)
        if number is None or not 0 <= number <= MOST_GUIDANCE:
            raise self._bad(row, "guidance", f"is no number from 0 to {MOST_GUIDANCE}.", "Correct it.")
        return float(number)

    def _size(self, row: Row) -> tuple[int, int] | None:
        """Width and height in pixels."""
        if "size" not in self.given.honour:
            return None
        width, height = self._whole(row, "width", *SIDES), self._whole(row, "height", *SIDES)
        if (value := self._value(row, "size")) is not None and width is None and height is None:
            sides = [_number(part) for part in re.split(r"[x×*,]", str(value).lower().strip(" ()[]"))]
            if len(sides) > 2 or not all(side and side == int(side) for side in sides):
                raise self._bad(row, "size", "is no size.", "Write 512, or 512x768.")
            width, height = int(sides[0] or 0), int(sides[-1] or 0)
        if width is None and height is None:
            return None
        found = (width or height or 0, height or width or 0)
        for side, role in zip(found, ("width", "height"), strict=True):
            if side % 8 or not SIDES[0] <= side <= SIDES[1]:
                role = role if role in self.columns.roles else "size"
                what = f"is no multiple of 8 from {SIDES[0]} to {SIDES[1]}."
                raise self._bad(row, role, what, "Correct it, or draw at the recipe's: honour: [seed, guidance].")
        return found

    def _whole(self, row: Row, role: str, low: int, high: int) -> int | None:
        if (value := self._value(row, role)) is None:
            return None
        number = _number(value)
        if number is None or not low <= number <= high or number != int(number):
            raise self._bad(row, role, f"is no whole number from {low} to {high:,}.", "Correct it, or leave it empty.")
        return int(number)

    def _value(self, row: Row, role: str) -> Any:
        """What stands in the column of a role; None if nothing does."""
        return self._cell(row, self.columns.roles.get(role, ""))

    @staticmethod
    def _cell(row: Row, column: str) -> Any:
        """What stands in a column; None if nothing does."""
        value = row.values.get(column)
        if isinstance(value, str) and value.strip().lower() in NOTHING:
            return None
        return None if isinstance(value, float) and math.isnan(value) else value

    def _bad(self, row: Row, role: str, what: str, remedy: str, column: str | None = None) -> Malformed:
        column = column or self.columns.roles.get(role, role)
        return Malformed(row.line, repr(column), f"{brief(row.values.get(column))} {what}", remedy)


def _number(value: Any) -> Decimal | None:
    """A finite number, to the last digit; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        return None
    return number if number.is_finite() and number.adjusted() < MOST_DIGITS else None
