"""What was evaluated, when and by what, and the command that does it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import yaml

from erasediff_lora.evaluation.parts import Table
from erasediff_lora.evaluation.report.blocks import Block, Code, Folded, Page, Rows, Text

RECIPE = "recipe.yaml"


def title(page: Page) -> str:
    return "Provenance"


def blocks(page: Page) -> Sequence[Block]:
    result = page.result
    recipe = yaml.safe_dump(result["recipe"], sort_keys=False, allow_unicode=True)
    folders = "Folders stand in it by their names only: where it names one, write the path."
    return [
        Text("To measure it again:"),
        Code(command(result)),
        Text(f"{RECIPE} is the recipe below, as it was evaluated. {folders}"),
        Folded("Recipe", [Code(recipe, RECIPE)]),
        Rows(Table(rows=_facts(result), head=("what", "value")), "provenance.csv"),
    ]


def command(result: Mapping[str, Any]) -> str:
    """What measures the adapter again."""
    adapter = result["adapter"]["file"]
    return (
        f"pip install erasediff-lora=={result['version']}\n"
        f"erasediff-lora evaluate {adapter} --recipe {RECIPE} --output again"
    )


def date_of(result: Mapping[str, Any]) -> str:
    """When it was made; empty if its name does not say."""
    try:
        return f"{datetime.strptime(str(result.get('name', ''))[:17], '%Y-%m-%d-%H%M%S'):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return ""


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    seeds, sampling = result["seeds"], result["sampling"]
    facts = {
        "date": date_of(result) or "unknown",
        "base": result["base"],
        "base's fingerprint": result["base_fingerprint"] or "unknown",
        "adapter": result["adapter"]["file"],
        "adapter's SHA-256": result["adapter"]["sha256"],
        "recipe's SHA-256": result["recipe_sha256"],
        "seeds": "forget {} to {}, retain {} to {}".format(*seeds["forget"], *seeds["retain"]),
        "sampling": f"{sampling['steps']} steps, guidance {sampling['guidance']}",
        "erasediff-lora": result["version"],
        **result["environment"],
        "seconds": ", ".join(f"{name} {value}" for name, value in result["seconds"].items()),
    }
    return [(name, str(value)) for name, value in facts.items()]
