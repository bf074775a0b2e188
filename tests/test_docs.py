"""The documents point at what exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from erasediff_lora import __version__, registry
from erasediff_lora.recipe import PRESETS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


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


def test_contributing_says_where_a_part_of_each_kind_goes() -> None:
    """A row of the table is a folder, a protocol, a registry and its entry-point group."""
    rows = re.findall(
        r"^\|.*?\| `([\w/]+)`.*?\| `([\w.]+)\.(\w+)` \| `(\w+)`, `erasediff_lora\.(\w+)` \|$",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.MULTILINE,
    )
    listed = {name for name, found in vars(registry).items() if isinstance(found, registry.Registry)}
    assert {name for *_, name, _ in rows} == listed - {"EXTRAS", "DETECTORS"}, "the two are of objectives and judges"
    for folder, module, protocol, name, group in rows:
        assert (ROOT / "erasediff_lora" / folder).is_dir()
        assert hasattr(importlib.import_module(f"erasediff_lora.{module}"), protocol)
        assert getattr(registry, name).kind == group


def test_the_citation_is_of_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
