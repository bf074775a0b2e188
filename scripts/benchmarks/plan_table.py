"""What the recipes of transformers take on cards of several sizes, as `plan` has it: the table in docs/models.md.

    python scripts/benchmarks/plan_table.py [--only flux_artist_style]

From the published configurations alone, as for a GPU: no weights and no GPU are needed. Where a recipe does not fit as
it is, the cheapest settings with which it does are found. Writes docs/results/plan_transformers.json, from which the
table is made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "tests"))  # with the published configurations
RESULTS, PAGE = ROOT / "docs/results/plan_transformers.json", ROOT / "docs/models.md"
CARDS = (8, 12, 16, 24)
GIB = 2**30
RECIPES = {
    f"{family}_{what}": family
    for family in ("flux", "flux_2_klein", "z_image", "qwen_image")
    for what in ("artist_style", "object")
}
PHASES = ("draw", "train")
BEGIN, END = "<!-- made by scripts/benchmarks/plan_table.py -->", "<!-- end -->"


def planned(name: str, base: Path, changes: dict[str, Any]) -> dict[str, float]:
    """GiB to draw and to train with a shipped recipe and these changes."""
    from erasediff_lora.denoisers import loading
    from erasediff_lora.memory.plan import plan
    from erasediff_lora.recipe import Recipe

    with (
        mock.patch.object(loading, "device", lambda model: torch.device("cuda")),
        mock.patch.object(loading, "find_spec", lambda package: object()),
    ):
        found = plan(Recipe.load(name, {"model.base": str(base)} | changes), PHASES)
    return {phase.name: round(phase.peak / GIB, 2) for phase in found.phases}


STEPS: tuple[dict[str, Any], ...] = (
    {},
    {"model.quantize": "int8"},
    {"model.quantize": "nf4"},
    {"model.quantize": "nf4", "model.quantize_encoders": "int8"},
    {"model.quantize": "nf4", "model.quantize_encoders": "nf4"},
)
"""From the recipe as it is to what takes least."""


def rows(name: str, folder: Path) -> list[dict[str, Any]]:
    """For each card the first settings with which the recipe fits."""
    from published_configs import published

    base = published(RECIPES[name], folder / name)
    measured = [(changes, planned(name, base, changes)) for changes in STEPS]
    found = []
    for card in CARDS:
        fitting = (one for one in measured if max(one[1].values()) <= card)
        changes, peaks = next(fitting, (None, {}))
        found.append({"recipe": name, "card": card, "changes": changes, **peaks})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row a recipe, a column a card."""
    lines = [f"| recipe, at 512 px | {' | '.join(f'{card} GiB' for card in CARDS)} |", "|---" * (len(CARDS) + 1) + "|"]
    for name in dict.fromkeys(row["recipe"] for row in found):
        mine = [row for row in found if row["recipe"] == name]
        lines.append(f"| `{name}` | {' | '.join(map(_cell, mine))} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["changes"] is None:
        return "–"
    flags = ", ".join(f"`{key} {value}`" for key, value in row["changes"].items()) or "as it is"
    return f"{flags}: {row['draw']:.1f} to draw, {row['train']:.1f} to train"


def main() -> None:
    """Plan, write, put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            known = [row for row in known if row["recipe"] != name] + rows(name, Path(folder))
            known.sort(key=lambda row: list(RECIPES).index(row["recipe"]))
            RESULTS.write_text(json.dumps(known, indent=2) + "\n")
            print(name, flush=True)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(known)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
