"""docs/programs.md: what programs read of adapter files, by format, family and version.

    python scripts/benchmarks/programs_table.py [docs/programs.md]

It is made of `erasediff_lora/adapter/programs`, and of what `check_loaders.py` found by the programs' own code
(docs/results/loaders.json), where checkouts were at hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from erasediff_lora.adapter.programs import Limit, Program, families_read
from erasediff_lora.registry import FAMILIES, FORMATS, PROGRAMS

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/programs.md"
MEASURED = ROOT / "docs/results/loaders.json"
HEAD = """\
# What programs read of adapter files

Which layers another program leaves out of a file or reads otherwise than they are meant. `erasediff-lora inspect FILE
--for comfyui` (or `--for all`) says the same of a file, with the number of layers; `convert` and `train` say it of what
they write. The facts are from the programs' code: version and place stand below. This page is made by
`scripts/benchmarks/programs_table.py`.

## Formats and families

yes: the program reads the file whole; a name with numbers: but for what those notes say; –: it does not read it.
"""


def rows(heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    shown = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in shown) + "\n"


def notes(name: str) -> Iterator[tuple[str, Limit]]:
    """A program's limits with their marks, such as 'comfyui 2'."""
    for number, limit in enumerate(PROGRAMS[name].limits, 1):
        yield f"{name} {number}", limit


def cell(name: str, format: str, family: str) -> str:
    """What a program makes of files in a format and of a family."""
    program: Program = PROGRAMS[name]
    if family not in families_read(name, program).get(format, ()):
        return "–"
    marks = [
        mark.rpartition(" ")[2]
        for mark, limit in notes(name)
        if (not limit.formats or format in limit.formats) and (not limit.families or family in limit.families)
    ]
    return f"{name} {', '.join(marks)}" if marks else "yes"


def matrix() -> str:
    """Format and family by program."""
    lines = [
        [format, f"`{family}`", *(cell(name, format, family) for name in PROGRAMS)]
        for format in FORMATS
        for family in FAMILIES
        if any(family in families_read(name, PROGRAMS[name]).get(format, ()) for name in PROGRAMS)
    ]
    heads = ["format", "family", *(f"{PROGRAMS[name].title} {PROGRAMS[name].version}" for name in PROGRAMS)]
    return rows(heads, lines)


def notes_of(name: str) -> str:
    """A program's limits, and where its code was read."""
    program: Program = PROGRAMS[name]
    lines = [
        [mark, limit.which.words, limit.versions or program.version, f"{limit.are}: {limit.why}", limit.remedy,
         f"`{limit.source.replace('`', '')}`"]
        for mark, limit in notes(name)
    ]  # fmt: skip
    text = f"## {program.title}\n\nVersion {program.version}: {program.repository}.\n"
    if program.tolerates is not None:
        text += f"It refuses a file of which more than {program.tolerates} tensors are left over.\n"
    heads = ["note", "layers", "versions", "what becomes of them", "remedy", "in the code"]
    return text + ("\n" + rows(heads, lines) if lines else "")


def measured(found: list[dict[str, Any]]) -> str:
    """What the programs' own code did."""
    heads = ["program", "version", "model", "file", "layers taken", "greatest difference from W + scale · B · A"]
    lines = [
        [row["program"], row["version"], row["model"], row["file"], f"{row['taken']} of {row['layers']}",
         "–" if row["greatest"] is None else f"{row['greatest']:.1e}"]
        for row in found
    ]  # fmt: skip
    return (
        "## Tried\n\nBy the programs' own loaders, in float32, an adapter of rank 4 and alpha 2.5 on all attention,"
        "\nfeed-forward and convolution layers and on the text encoder of Stable Diffusion 1.5"
        " (`scripts/benchmarks/check_loaders.py`).\n\n" + rows(heads, lines)
    )


def page() -> str:
    """The whole document."""
    found = json.loads(MEASURED.read_text())["rows"] if MEASURED.is_file() else []
    parts = [HEAD, matrix(), *(notes_of(name) for name in PROGRAMS), *([measured(found)] if found else [])]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else PAGE).write_text(page(), encoding="utf-8")
