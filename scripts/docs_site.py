"""Hooks of mkdocs: what the site says of fields and commands is asked of the program, so that it cannot go stale.

A page of `docs/` says `<!-- recipe fields -->`, `<!-- commands -->` or `<!-- include FILE#heading -->` where that goes.
Links of pages to files outside of `docs/` lead to the repository.
"""

from __future__ import annotations

import argparse
import inspect
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from erasediff_lora.cli import VERBS
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.schema import Section, Variant, section_types
from erasediff_lora.registry import Registry

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/erasediff-lora/erasediff-lora"
PICTURES = "https://raw.githubusercontent.com/erasediff-lora/erasediff-lora/main/"
"""Where the README's pictures are taken from elsewhere."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """What mkdocs calls for every page."""
    return expanded(markdown, page.file.src_uri)


def on_post_page(output: str, **others: Any) -> str:
    """What mkdocs calls for every built page: the theme would ask GitHub for numbers of stars."""
    return output.replace(' data-md-component="source"', "")


def expanded(markdown: str, page: str) -> str:
    """A page with all that is asked of the program, and with links that lead somewhere on the site.

    Args:
        markdown: Its source.
        page: Its path below docs/.
    """
    markdown = re.sub(r"<!-- include (\S+?)(?:#([\w-]+))? -->", lambda m: included(m[1], m[2], page), markdown)
    for marker, make in {"recipe fields": recipe_fields, "commands": commands}.items():
        if (comment := f"<!-- {marker} -->") in markdown:
            markdown = markdown.replace(comment, make())
    return LINK.sub(lambda match: _link(match, page), markdown)


def _link(match: re.Match[str], page: str) -> str:
    image, text, target = match.groups()
    path, _, anchor = target.partition("#")
    whole = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), path))
    if "://" in target or not path or (whole.startswith("docs/") and not whole.endswith(".json")):
        return match[0]
    kind = "tree" if (ROOT / whole).is_dir() else "blob"
    return f"{image}[{text}]({REPOSITORY}/{kind}/main/{whole}{'#' + anchor if anchor else ''})"


def included(file: str, heading: str | None, page: str) -> str:
    """A file of the repository, without its title, or the text below one of its headings."""
    text = (ROOT / file).read_text(encoding="utf-8")
    parts = re.split(r"^(#{1,2} .+)$", text, flags=re.MULTILINE)
    sections = {_slug(title): body for title, body in zip(parts[1::2], parts[2::2], strict=True)}
    text = sections[heading] if heading else text.partition("\n")[2]
    up = "../" * (page.count("/") + 1)

    def moved(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        target = target.removeprefix(PICTURES)
        if "://" in target or target.startswith("#"):
            return match[0]
        inside = target.removeprefix("docs/")
        return f"{image}[{label}]({'../' * page.count('/') + inside if inside != target else up + target})"

    return LINK.sub(moved, text)


def _slug(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lstrip("# ").lower()).replace(" ", "-")


def recipe_fields() -> str:
    """Tables of all fields of a recipe."""
    tables = dict(section_types(Recipe))
    top = [name for name in Recipe.model_fields if name not in tables]
    parts = [_table(Recipe, "", top)]
    for name, table in tables.items():
        parts.append(f"## {name}")
        parts += list(_section(name, table))
    return "\n\n".join(parts)


def _section(name: str, table: type[Section]) -> Iterator[str]:
    """The table of a section: what all of its variants have, then what each adds; and the tables in it."""
    yield (table.__doc__ or "").split("\n\n")[0]
    variants = table.tables()
    shared = [field for field in variants[0].model_fields if _same(field, variants)]
    inner = dict(section_types(variants[0])) if len(variants) == 1 else {}
    rows = _table(variants[0], f"{name}.", [field for field in shared if field not in inner])
    if not issubclass(table, Variant):
        yield rows
    else:
        chosen = _row(rows, f"{name}.{table.selector}")
        yield rows.replace(chosen, _with_values(chosen, list(table.parts)))
        for part, variant in zip(table.parts, variants, strict=True):
            differs = [name for name in shared if name != table.selector and _differs(name, variant, variants[0])]
            if own := [field for field in variant.model_fields if field not in shared or field in differs]:
                yield f"### {name}.{table.selector}: {part}\n\n" + _table(variant, f"{name}.", own)
    for field, inside in inner.items():
        yield f"### {name}.{field}\n\n{(inside.__doc__ or '').split(chr(10) * 2)[0]}\n\n" + _table(
            inside, f"{name}.{field}.", list(inside.model_fields)
        )


def _same(field: str, variants: Sequence[type[Section]]) -> bool:
    """Whether all variants have a field, for the same; what it may be is told apart only by the one that selects."""
    found = [variant.model_fields.get(field) for variant in variants]
    return all(one is not None and one.description == (found[0] and found[0].description) for one in found)


def _differs(field: str, variant: type[Section], first: type[Section]) -> bool:
    """Whether a shared field takes other values there."""
    return variant.model_fields[field].annotation != first.model_fields[field].annotation


def _row(table: str, field: str) -> str:
    return next(row for row in table.splitlines() if row.startswith(f"| `{field}` |"))


def _with_values(row: str, values: list[str]) -> str:
    cells = row.split(" | ")
    return " | ".join([cells[0], ", ".join(f"`{value}`" for value in values), *cells[2:]])


def _table(model: type[Section], prefix: str, names: list[str]) -> str:
    rows = ["| field | may be | default | what |", "|---|---|---|---|"]
    for name in names:
        field = model.model_fields[name]
        inside = _table_in(field.annotation)
        default = "required" if field.is_required() else _code(field.get_default(call_default_factory=True))
        allowed = may_be(field.annotation, field.metadata)
        rows.append(f"| `{prefix}{name}` | {allowed} | {default} | {_cell(field.description or '')} |")
        if inside is not None and inside is not model:
            rows += _table(inside, f"{prefix}{name}.", list(inside.model_fields)).splitlines()[2:]
    return "\n".join(rows)


def _table_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for inside in get_args(annotation) if (found := _table_in(inside)) is not None), None)


def may_be(annotation: Any, metadata: list[Any]) -> str:
    """The values that a field takes, in words."""
    limits = []
    for one in metadata:
        if (parts := _registered(one)) is not None:
            return ", ".join(f"`{name}`" for name in parts)
        limits += [f"{sign} {value:g}" for key, sign in SIGNS.items() if (value := getattr(one, key, None)) is not None]
    return " ".join([_type(annotation), ", ".join(limits)]).strip()


def _registered(metadata: Any) -> Registry | None:
    """The parts of `recipe.schema.one_of`, if that is it."""
    check = getattr(metadata, "func", None)
    parts = inspect.getclosurevars(check).nonlocals.get("parts") if inspect.isfunction(check) else None
    return parts if isinstance(parts, Registry) else None


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_type, inside)))
    if origin is list:
        return f"list of {_type(inside[0])}"
    if origin is dict:
        return f"{{{_type(inside[0])}: {_type(inside[1])}}}"
    if hasattr(annotation, "__metadata__"):
        return may_be(annotation.__origin__, list(annotation.__metadata__))
    names = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path", NoneType: "`null`"}
    return names.get(annotation, "table" if _table_in(annotation) else str(annotation))


def _code(value: Any) -> str:
    if value in ({}, [], None):
        return {"{}": "empty", "[]": "empty"}.get(str(value), "–")
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return re.sub(r"\{(\w+)\}", r"`{\1}`", text).replace("|", "\\|").replace("<", "&lt;")


def commands() -> str:
    """Every verb with its arguments."""
    parts = []
    for name, verb in VERBS.items():
        parser = argparse.ArgumentParser(f"erasediff-lora {name}", add_help=False, allow_abbrev=False)
        verb.add_arguments(parser)
        parts.append(f"## {name}\n\n{verb.summary[0].upper()}{verb.summary[1:]}.")
        parts += list(_usage(parser))
        if verb.epilog:
            parts.append("Every field of a recipe is a flag of it: `--section.field VALUE`; see [Recipe](recipe.md).")
    return "\n\n".join(parts)


def _usage(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"```text\n{parser.format_usage().removeprefix('usage: ').strip()}\n```"
    rows, inner = [], []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            inner += list(action.choices.values())
            continue
        names = [f"`{name}`" for name in action.option_strings or [str(action.metavar or action.dest)]]
        allowed = f" (one of {', '.join(map(str, action.choices))})" if action.choices else ""
        rows.append(f"| {', '.join(names)} | {_cell((action.help or '') + allowed)} |")
    if rows:
        yield "\n".join(["| argument | what |", "|---|---|", *rows])
    for one in inner:
        yield f"### {one.prog.removeprefix('erasediff-lora ')}"
        yield from _usage(one)
