"""Rows of files become prompts to forget, to retain or to attack with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from erasediff_lora.data.prompt_files import formats
from erasediff_lora.data.prompt_files.columns import LINE, SPLITS, Columns, assign
from erasediff_lora.data.prompt_files.row_reader import FIELD, RowReader
from erasediff_lora.data.prompt_files.table import Malformed, Table
from erasediff_lora.data.prompts import Prompt, is_named
from erasediff_lora.errors import Problem, UserError, brief
from erasediff_lora.recipe import ForgetSet, Recipe, RetainSet
from erasediff_lora.recipe.names import few
from erasediff_lora.recipe.prompt_files import PromptFile, Use
from erasediff_lora.storage.files import sha256

log = logging.getLogger(__name__)
MOST_PROBLEMS = 10
"""That are told of one file."""


@dataclass(frozen=True)
class FilePrompts:
    """What a recipe's files hold.

    Attributes:
        forget: Prompts that stand for a forgotten concept, concepts in turn.
        retain: Prompts that must go on working.
        attack: Prompts that are to bring a concept back.
        files: Of each file what was understood: name, hash, columns, numbers of rows.
    """

    forget: Sequence[Prompt] = ()
    retain: Sequence[Prompt] = ()
    attack: Sequence[Prompt] = ()
    files: Sequence[Mapping[str, Any]] = field(default=(), repr=False)


def file_prompts(recipe: Recipe) -> FilePrompts:
    """The prompts of `evaluation.prompts`; none if it names no file.

    Raises:
        UserError: With what is wrong with the files, and in which lines and columns.
    """
    problems: list[Problem] = []
    uses: dict[Use, list[Prompt]] = {"forget": [], "retain": [], "attack": []}
    files = []
    for given in recipe.evaluation.prompts:
        try:
            found, told = _of_file(given, recipe)
        except UserError as error:
            problems += error.problems
            continue
        files.append(told)
        for use, prompt in found:
            uses[use].append(prompt)
    if problems:
        raise UserError(*problems)
    return FilePrompts(_in_turn(uses["forget"]), uses["retain"], uses["attack"], files)


def describe(found: FilePrompts) -> None:
    """Log what was understood, with the first and the last row of each file."""
    for told in found.files:
        log.info("%s: %s rows; %s", told["file"], f"{told['rows']:,}", told["columns"])
        log.info("  %s", ", ".join(f"{count:,} to {use}" for use, count in told["uses"].items() if count))
        if told.get("empty"):
            log.warning("  without a prompt, and left out: line %s", ", ".join(map(str, told["empty"])))
        if again := told.get("again"):
            log.warning("  there before, with prompt and seed, and so the same picture again: %s", f"{again:,}")
        if aside := told.get("aside"):
            log.warning("  says nothing of erase, retain or attack, and left aside: column %r", aside)
        if unnamed := told.get("unnamed"):
            log.warning("  to forget, and without its name: %s", f"{unnamed:,}")
        if others := told.get("others"):
            named = few(others["concepts"])
            log.warning(
                "  of concepts that the recipe does not forget, and left out: %d rows (%s)", others["rows"], named
            )
        for name in ("first", "last"):
            log.info("  %-5s %s", name, told[name])


def _in_turn(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Concepts in turn, so that any prefix is balanced over them."""
    own: dict[str | None, int] = {}
    order = []
    for index, prompt in enumerate(prompts):
        order.append((own.setdefault(prompt.concept, 0), index))
        own[prompt.concept] += 1
    return [prompts[index] for _, index in sorted(order)]


Read = tuple[Sequence[tuple[Use, Prompt]], Mapping[str, Any]]
"""The prompts of one file with their uses, and what was understood."""


def _of_file(given: PromptFile, recipe: Recipe) -> Read:
    """What a file holds.

    Raises:
        UserError: With what is wrong with it.
    """
    name = str(given.file)
    try:
        state = given.file.stat()
        tables = given.model_dump_json(), recipe.forget.model_dump_json(), recipe.retain.model_dump_json()
        return _read(*tables, state.st_mtime_ns, state.st_size)
    except Malformed as error:
        raise UserError(_problem(name, error)) from None
    except OSError as error:
        what = f"cannot be read: {error.strerror}."
        if isinstance(error, FileNotFoundError):
            what = "there is no such file."
        raise UserError(Problem(FIELD, name, what, "Check the path; it is relative to where you are.")) from None


@lru_cache(maxsize=16)
def _read(given_json: str, forget_json: str, retain_json: str, changed: int, size: int) -> Read:
    """The same, once as long as neither the file nor what the recipe says of it changes; tables as JSON."""
    given = PromptFile.model_validate_json(given_json)
    forget, retain = ForgetSet.model_validate_json(forget_json), RetainSet.model_validate_json(retain_json)
    name = str(given.file)
    table = formats.read(given.file, _wanted(given))
    digest = None if given.file.is_dir() else sha256(given.file.read_bytes())
    columns = _assigned(table, given)
    reader = RowReader(given, columns, forget, retain, table)
    reader.refuse_templates(table)
    found: list[tuple[Use, Prompt]] = []
    problems: list[Problem] = []
    empty: list[int] = []
    others: list[str] = []
    for row in table.rows[: given.rows]:
        if (other := reader.of_another(row)) is not None:
            others.append(other)
            continue
        try:
            own = reader.prompts(row)
        except Malformed as error:
            problems.append(_problem(name, error))
            continue
        found += own
        empty += [row.line] * (not own)
    if not found and not problems and others:
        problems.append(_problem(name, reader.of_no_concept(others)))
    elif not found and not problems:
        problems.append(_problem(name, Malformed(empty[0], repr(columns.prompts[0]), "is empty, as in every row.")))
    if len(problems) > MOST_PROBLEMS:
        what = f"{len(problems) - MOST_PROBLEMS:,} further rows cannot be used."
        problems = [*problems[:MOST_PROBLEMS], Problem(FIELD, name, what, "Correct the first ones.")]
    if problems:
        raise UserError(*problems)
    uses = {use: sum(own == use for own, _ in found) for use in SPLITS}
    told: dict[str, Any] = {
        "file": given.file.name,
        "sha256": digest,
        "rows": min(len(table.rows), given.rows or len(table.rows)),
    }
    told |= {"empty": empty[:MOST_PROBLEMS]} if empty else {}
    told |= {"others": {"rows": len(others), "concepts": list(dict.fromkeys(others))[:MOST_PROBLEMS]}} if others else {}
    told |= {"aside": reader.aside} if reader.aside else {}
    drawn = [(one.text, one.seed, one.guidance, one.size) for _, one in found if one.seed is not None]
    told |= {"again": len(drawn) - len(set(drawn))} if len(set(drawn)) < len(drawn) else {}
    named = [is_named(one.text, one.concept) for use, one in found if use == "forget" and one.concept]
    if reader.split and not reader.columns.concepts and any(named) and not all(named):
        told["unnamed"] = named.count(False)  # a list of many, perhaps, of which the recipe forgets one
    shown = {"columns": reader.columns.words(), "uses": uses, "first": _shown(*found[0]), "last": _shown(*found[-1])}
    return found, told | shown


def _wanted(given: PromptFile) -> list[str]:
    return [name for names in given.columns.values() for name in ([names] if isinstance(names, str) else names)]


def _assigned(table: Table, given: PromptFile) -> Columns:
    asked: dict[str, str | list[str]] = {role: names for role, names in given.columns.items() if names != LINE}
    try:
        return assign(table.columns, asked)
    except ValueError as error:
        what = f"{str(error).rstrip('.')}."
        raise Malformed(1, 1, what, f"Name it: --columns prompt=NAME, or prompt={LINE} for whole lines.") from None


def _problem(file: str, error: Malformed) -> Problem:
    place = f"{file}:{error.line}" if error.line else file
    column = "" if error.column is None else f"column {error.column}: "
    return Problem(FIELD, place, f"{column}{error.what}", error.remedy)


def _shown(use: Use, prompt: Prompt) -> str:
    """A prompt as a line of the log."""
    told = [use, *([prompt.concept] if prompt.concept else [])]
    told += [f"seed {prompt.seed}"] * (prompt.seed is not None)
    told += [f"guidance {prompt.guidance:g}"] if prompt.guidance is not None else []
    told += [f"{prompt.size[0]}x{prompt.size[1]}"] if prompt.size else []
    return f"({', '.join(told)}) {brief(prompt.text)}"
