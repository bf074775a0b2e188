"""The verb that looks after the cache: `erasediff-lora cache [--keep SIZE] [--older DAYS]`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from erasediff_lora.cli.verb import Verb, bytes_of, require_none, user_path
from erasediff_lora.errors import Problem, UserError


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=user_path, help="the cache [~/.cache/erasediff-lora]")
    parser.add_argument("--keep", metavar="SIZE", help="remove what was not used for longest, down to a size: 20GiB")
    parser.add_argument("--older", metavar="DAYS", type=float, help="remove what was not used for so many days")
    parser.add_argument("--dry_run", action="store_true", help="say what would be removed, and leave it")


def _cache(parsed: argparse.Namespace, rest: list[str]) -> None:
    from erasediff_lora.recipe import Recipe
    from erasediff_lora.storage import cache
    from erasediff_lora.storage.paths import expanded

    require_none(rest)
    if parsed.older is not None and not parsed.older >= 1:
        what = "is less than a day: what was used within one may be in use."
        raise UserError(Problem("--older", parsed.older, what, "Write 1 or more."))
    folder: Path = parsed.folder or expanded(Recipe.model_fields["cache"].default, "--folder")
    keep = None if parsed.keep is None else bytes_of("--keep", parsed.keep)
    older = None if parsed.older is None else parsed.older * cache.DAY
    found = cache.entries(folder)
    if keep is not None or older is not None:
        gone = cache.surplus(found, keep=keep, older=older)
        if not parsed.dry_run:
            gone = [entry for entry in gone if cache.remove(entry)]
            found = [entry for entry in found if entry not in gone]
        says = "would remove" if parsed.dry_run else "removed"
        print(f"{says} {len(gone)} entries, {_size(sum(entry.size for entry in gone))}")
    print(folder)
    for kind in cache.KINDS:
        if of_kind := [entry for entry in found if entry.kind == kind]:
            idle = [(time.time() - entry.used) / cache.DAY for entry in of_kind]
            took = _size(sum(entry.size for entry in of_kind))
            print(f"  {kind:28}{len(of_kind):6}{took:>12}   used {min(idle):.0f} to {max(idle):.0f} days ago")
    print(f"  {'all':28}{len(found):6}{_size(sum(entry.size for entry in found)):>12}")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


VERBS = {"cache": Verb("list what the cache holds, and make room in it", _arguments, _cache)}
"""What a verb of the command line is."""
