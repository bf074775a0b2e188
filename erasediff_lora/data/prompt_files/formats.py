"""The files that prompts come in: tables with and without titles, JSON, lines, `datasets`; every row with its line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from erasediff_lora.data.prompt_files import json_rows, saved_dataset, separated
from erasediff_lora.data.prompt_files.columns import LINE
from erasediff_lora.data.prompt_files.table import Malformed, Row, Table, place_of

LARGEST = 256 * 2**20
"""Bytes."""
MOST_ROWS = 1_000_000
_LIKE_JSON = re.compile(r"\s*(\[\s*([\"{\]]|\[\s*[\"\d])|\{\s*[\"}])")
"""How JSON begins, whatever the file is called; '[a cat]' and '{masterpiece} cat' are prompts."""
_OTHER_KINDS = {
    b"version https://git-lfs.github.com/spec/": (
        "is a Git LFS pointer, not the file itself.",
        "Run: git lfs pull.",
    ),
    b"/annex/objects/": ("is a git-annex pointer, not the file itself.", "Run: git annex get."),
    b"version https://hawser.github.com/spec/": ("is a Git LFS pointer, not the file itself.", "Run: git lfs pull."),
    b"# xet version": ("is a pointer of git-xet, not the file itself.", "Run: git xet checkout."),
    b"<?xml": ("is XML.", "Save the table as CSV in UTF-8."),
    b"BZh": ("is compressed.", "Unpack it."),
    b"\xfd7zXZ": ("is compressed.", "Unpack it."),
    b"\x28\xb5\x2f\xfd": ("is compressed.", "Unpack it."),
    b"\xd0\xcf\x11\xe0": ("is a spreadsheet.", "Save the table as CSV in UTF-8."),
    b"ARROW1": ("is an Arrow file.", "Give the folder that datasets.save_to_disk wrote, or save it as CSV."),
    b"PK\x03\x04": ("is a zip archive or a spreadsheet.", "Save the table as CSV in UTF-8."),
    b"\x1f\x8b": ("is compressed.", "Unpack it."),
    b"PAR1": ("is a Parquet file.", "Give the folder that datasets.save_to_disk wrote, or save it as CSV."),
    b"\xff\xfe": ("is UTF-16.", "Save it as UTF-8."),
    b"\xfe\xff": ("is UTF-16.", "Save it as UTF-8."),
    b"%PDF": ("is a PDF.", "Save the table as CSV in UTF-8."),
    b"<!doctype html": ("is a web page, not the file itself.", "Download the raw file."),
    b"<html": ("is a web page, not the file itself.", "Download the raw file."),
}
"""How a file begins that is something else -> what to say."""
_ANSWERS = (b"404: not found", b"not found", b"entry not found", b"invalid username or password.")
"""What servers send in the place of a file."""


def read(path: Path, wanted: Sequence[str]) -> Table:
    """The rows of a file or a folder of `datasets`.

    Args:
        path: What was given.
        wanted: Columns that the user names; `LINE` among them reads whole lines.

    Raises:
        Malformed: If it cannot be read; with line and column where they are known.
        OSError: If it is not there.
    """
    if path.is_dir():
        return saved_dataset.read(path)
    if path.exists() and not path.is_file():  # a pipe or a device, which may never end
        raise Malformed(0, None, "is no file.", "Give a file.")
    if path.stat().st_size > LARGEST:
        raise Malformed(0, None, f"has more than {LARGEST // 2**20} MiB.", "Give a part of it.")
    text = _decoded(path.read_bytes())
    suffix = path.suffix.lower()
    if LINE in wanted:
        table = _lines(text)
    elif suffix in (".json", ".jsonl", ".ndjson") or _LIKE_JSON.match(text):
        table = json_rows.read(text)
    elif suffix in (".yaml", ".yml"):
        raise Malformed(1, 1, "is YAML.", "Save it as CSV or JSON.")
    else:
        table = separated.read(text, suffix, wanted) or _lines(text)
    if not table.rows:
        raise Malformed(1, 1, "has no row.", "Write a prompt a line.")
    if len(table.rows) > MOST_ROWS:
        raise Malformed(MOST_ROWS, None, f"has more than {MOST_ROWS:,} rows.", "Give a part of it.")
    return table


def _decoded(data: bytes) -> str:
    start = data.removeprefix(b"\xef\xbb\xbf")[:200].lstrip().lower()
    for mark, (what, remedy) in _OTHER_KINDS.items():
        if start.startswith(mark.lower()):
            raise Malformed(1, 1, what, remedy)
    if start.strip() in _ANSWERS:
        raise Malformed(1, 1, "is a server's answer, not the file itself.", "Download the raw file.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = place_of(error.object[: error.start].decode("utf-8", "replace"))
        raise Malformed(line, column, "is no UTF-8.", "Save it as UTF-8 (in spreadsheets 'CSV UTF-8').") from None
    if text.count("\0") > len(text) // 100:  # searched prompts have one now and then
        raise Malformed(
            *place_of(text[: text.index("\0")]), "is a NUL character: this is no text.", "Save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(text: str) -> Table:
    """A prompt a line; blank ones say nothing. Quotes around a whole line go."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        shown = line.strip()
        if not shown:
            continue
        if len(shown) > 1 and shown[0] == shown[-1] == '"' and '"' not in shown[1:-1].replace('""', ""):
            shown = shown[1:-1].replace('""', '"')
        rows.append(Row(number, {LINE: shown}))
    return Table([LINE], rows)
