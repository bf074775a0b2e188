"""The documents point at what exists."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from erasediff_lora import __version__, registry
from erasediff_lora.cli import VERBS
from erasediff_lora.recipe import PRESETS, flags

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
REPOSITORY = "https://github.com/erasediff-lora/erasediff-lora"
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
def test_the_page_gives_the_values_of_the_preset(field: str, value: object) -> None:
    row = re.search(rf"^\| `{re.escape(field)}` \| `?([^\s`]+)", (ROOT / "docs/robust.md").read_text(), re.MULTILINE)
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


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1500
    assert not re.findall(r"\]\((?!https://)", text), "it is read elsewhere too"


@pytest.mark.parametrize("link", re.findall(r"erasediff-lora/(?:blob|tree|main)/?(?:main/)?([\w./-]+)", README))
def test_the_readme_links_to_files_that_exist(link: str) -> None:
    assert (ROOT / link.rstrip(".")).exists()


def test_every_page_is_in_the_navigation() -> None:
    """And says in its first paragraph what it is for."""
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    pages = {page.relative_to(ROOT / "docs").as_posix(): page for page in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/]+\.md", navigation)) == set(pages)
    for name, page in pages.items():
        text = re.sub(r"\A---\n.*?\n---\n", "", page.read_text(), flags=re.DOTALL)  # a card's front matter
        title, _, rest = text.partition("\n\n")
        assert (title.startswith("# ") and rest[:1].isalnum()) or rest.startswith("**"), name


def test_the_reference_has_every_field_and_every_verb() -> None:
    from docs_site import expanded

    recipe = expanded((ROOT / "docs/reference/recipe.md").read_text(), "reference/recipe.md")
    missing = [name for name, _, _ in flags() if f"`{name}`" not in recipe]
    assert not missing
    assert "| `model.dtype` | `auto`, `float32`, `bfloat16`, `float16`, `float64` | `auto` |" in recipe
    assert "| `training.steps` | integer or text | `300` |" in recipe
    assert "| `objective.eta` | number > 0 |" in recipe and "| `sampling.steps` | integer ≥ 1 |" in recipe
    assert "| `adapter.kind` | `lora`, `none` | `lora` |" in recipe
    pages = expanded((ROOT / "docs/reference/commands.md").read_text(), "reference/commands.md")
    assert all(f"\n## {verb}\n" in pages for verb in VERBS) and "| `--resume` |" in pages


def test_the_site_leads_to_files_of_the_repository() -> None:
    from docs_site import expanded

    assert expanded("[a](../CONTRIBUTING.md)", "x.md") == f"[a]({REPOSITORY}/blob/main/CONTRIBUTING.md)"
    assert expanded("[a](../../recipes#b)", "t/x.md") == f"[a]({REPOSITORY}/tree/main/recipes#b)"
    assert expanded("[a](y.md#b) [c](https://d/e)", "x.md") == "[a](y.md#b) [c](https://d/e)"
    assert "](programs.md)" in expanded("<!-- include CHANGELOG.md -->", "changelog.md")
    assert "](demo_cat.webp)" in expanded("<!-- include README.md -->", "index.md"), "the site has the picture itself"


def test_every_extra_is_explained() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = "".join(re.findall(r"^\|.*", (ROOT / "docs/install.md").read_text(), re.MULTILINE))
    assert not [name for name in extras if f"`{name}`" not in table]


@pytest.mark.parametrize("kind", ["ATTACKS", "METRICS", "JUDGES", "SURVIVAL", "PROTOCOLS", "OBJECTIVES", "FAMILIES"])
def test_every_part_is_on_a_page(kind: str) -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    assert not [name for name in getattr(registry, kind) if not re.search(rf"`{name}[`:]", pages)]


def test_the_citation_is_of_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
