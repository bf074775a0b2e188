"""The documents point at what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from erasediff_lora.recipe import PRESETS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        assert target.exists(), f"{document.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{document.name}: {link}"


def test_commands_name_files_that_exist() -> None:
    """Recipes, scripts and launch configurations in the documents."""
    for document in DOCUMENTS:
        for path in re.findall(r"(?<![\w/])(?:recipes|scripts)/[\w./-]+\.(?:py|yaml|sh)", document.read_text()):
            assert (ROOT / path).is_file(), f"{document.name}: {path}"


@pytest.mark.parametrize(("field", "value"), PRESETS["robust"].items())
def test_the_readme_gives_the_values_of_the_preset(field: str, value: object) -> None:
    row = re.search(rf"^\| `{re.escape(field)}` \| `?([^\s`]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert row is not None and row[1] == str(value)
