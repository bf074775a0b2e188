"""The verb `recipes`: those that come with the package, and the fields that one may have."""

from __future__ import annotations

import argparse
from pathlib import Path

from erasediff_lora.cli.verb import Verb, require_none, user_path
from erasediff_lora.errors import Problem, UserError, nearest


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="[ACTION]", title="instead of listing them")
    copy = actions.add_parser("copy", help="write a recipe to a file of yours", allow_abbrev=False)
    copy.add_argument("name", help="as `erasediff-lora recipes` lists it")
    copy.add_argument("output", type=user_path, help="new file")
    copy.add_argument("--overwrite", action="store_true", help="replace the output")
    fields = actions.add_parser("fields", help="list the fields of a recipe, all of them flags", allow_abbrev=False)
    fields.add_argument("section", nargs="?", help="only those of this table, such as training or evaluation.inversion")


def _recipes(parsed: argparse.Namespace, rest: list[str]) -> None:
    require_none(rest)
    if parsed.action == "copy":
        _copy(parsed.name, parsed.output, overwrite=parsed.overwrite)
    elif parsed.action == "fields":
        _fields(parsed.section)
    else:
        _list()


def _list() -> None:
    from erasediff_lora.recipe import shipped

    for title, files in (("recipes", shipped.recipes()), ("for accelerate launch", shipped.launchers())):
        print(f"{title}:")
        for name, file in files.items():
            print(f"  {name:20} {shipped.summary(file)}")
    print("\nerasediff-lora train NAME runs a recipe; erasediff-lora recipes copy NAME FILE makes it yours to change.")


def _copy(name: str, output: Path, *, overwrite: bool) -> None:
    from erasediff_lora.recipe import shipped
    from erasediff_lora.storage.files import require_free, write_text

    files = shipped.recipes() | shipped.launchers()
    if name not in files:
        raise UserError(Problem("recipe", name, "does not come with the package.", nearest(name, files)))
    require_free(output, overwrite=overwrite)
    write_text(output, files[name].read_text(encoding="utf-8"))
    print(output)


def _fields(section: str | None) -> None:
    from erasediff_lora.recipe import flags

    rows = list(flags())
    if section is not None:
        tables = {name.rpartition(".")[0] for name, _, _ in rows} - {""}
        if section not in tables:
            raise UserError(Problem("section", section, "is no table of a recipe.", nearest(section, tables)))
        rows = [row for row in rows if row[0].startswith(f"{section}.")]
    print("settable as --NAME VALUE (values are YAML), with their defaults:")
    for name, description, default in rows:
        print(f"  --{name:34} {description} [{default}]")


VERBS = {"recipes": Verb("list the recipes that come with the package, or copy one", _arguments, _recipes)}
