"""Markdown with names of others in it: whatever is filled in is text, and no markup."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import jinja2

from erasediff_lora.errors import printable

_MARKUP = re.compile(r"([\\`*_\[\]~|$@])|(?<=:)(?=//)|(?<=www)(?=\.)")
"""What Markdown acts on anywhere: marks, and the places where a bare address becomes a link."""
_FOLDERS = re.compile(r"""(?<![\w/\\.])(?:~|[A-Za-z]:)?[/\\](?:[^\s'"/\\]+[/\\])+""")
"""The folders of a path in a text; of an address on the web nothing."""
_AT_THE_START = re.compile(r"^(\d*)([#+=-]|(?<=\d)[.)](?=\s|$))")


class Markdown(str):
    """What is Markdown already, and stays as it is."""


def without_folders(text: str) -> str:
    """A message as others may see it: names of files, without where they lie on this machine."""
    return _FOLDERS.sub("", text)


def one_line(value: object) -> str:
    """Text without line breaks, and without what a terminal or a browser would act on."""
    return printable(" ".join(str(value).split()))


def escaped(value: object) -> Markdown:
    """What reads as the value itself, wherever it stands on a line."""
    if isinstance(value, Markdown):
        return value
    text = _MARKUP.sub(lambda found: f"\\{found[1] or ''}", one_line(value))
    return Markdown(html.escape(_AT_THE_START.sub(r"\1\\\2", text), quote=False))


def code(value: object) -> Markdown:
    """A code span with the value in it."""
    text = one_line(value).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markdown(f"{fence} {text} {fence}" if "`" in text else f"`{text}`")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markdown:
    """A table; a cell of None is a dash."""
    lines: list[Sequence[object]] = [head, ["---"] * len(head)]
    lines += [["–" if cell is None or cell == "" else escaped(cell) for cell in row] for row in rows]
    return Markdown("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))


def template(text: str) -> jinja2.Template:
    """A template in which everything that is filled in is escaped."""
    environment = jinja2.Environment(
        finalize=escaped, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": code, "verbatim": Markdown}
    return environment.from_string(text)
