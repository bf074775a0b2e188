"""Concepts from a file: what stands in it becomes part of the recipe, and what is wrong in it is named by line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.errors import UserError
from erasediff_lora.recipe import Recipe

Named = Callable[..., Path]

SAID = [
    {"name": "Claude Monet", "anchor": "a painter"},
    {"name": "Gogh, Vincent van", "anchor": "a painter", "templates": ["a {concept}", "{concept}, oil"]},
    {"name": "#1"},
]
CSV = """\
# who is to be forgotten

name, anchor,paraphrases ,templates
Claude Monet,a painter,Monet | C. Monet,
# the "next" one, with a comma
"Gogh, Vincent van",a painter,,"a {concept}|{concept}, oil"

"#1"
"""
FILES = {
    "artists.csv": CSV,
    "excel.csv": "\ufeff" + CSV.replace("# who is to be forgotten\n\n", "").replace("\n", "\r\n"),
    "semicolons.csv": "name;anchor;templates;paraphrases\nClaude Monet;a painter;;Monet|C. Monet\n"
    "Gogh, Vincent van;a painter;a {concept}|{concept}, oil\n\"#1\"\n",
    "artists.tsv": "NAME\tanchor\ttemplates\tparaphrases\nClaude Monet\ta painter\t\tMonet|C. Monet\n"
    "Gogh, Vincent van\ta painter\ta {concept}|{concept}, oil\n\"#1\"\n",
    "artists.jsonl": '#\n{"name": "Claude Monet", "anchor": "a painter", "paraphrases": ["Monet", "C. Monet"]}'
    '\n\n{"name": "Gogh, Vincent van", "anchor": "a painter", "templates": ["a {concept}", "{concept}, oil"]}\n"#1"\n',
    "artists.yaml": "- {name: Claude Monet, anchor: a painter, paraphrases: [Monet, C. Monet]}\n"
    "- name: Gogh, Vincent van\n  anchor: a painter\n  templates: ['a {concept}', '{concept}, oil']\n- '#1'\n",
}  # fmt: skip


@pytest.fixture
def named(recipe_file: RecipeFile, tmp_path: Path) -> Named:
    """A recipe that names a list, which lies beside it."""

    def write(name: str, content: str | bytes, **sections: Any) -> Path:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        forget = {"concepts": {"file": name}, "count": 2000} | sections.pop("forget", {})
        return recipe_file(forget=forget, **sections)

    return write


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_says_the_same(name: str, named: Named) -> None:
    recipe = Recipe.load(named(name, FILES[name]))
    said = [concept.model_dump(exclude_none=True) for concept in recipe.forget.concepts]
    assert said == SAID
    assert recipe.evaluation.model_dump()["paraphrases"]["names"] == {"Claude Monet": ["Monet", "C. Monet"]}


def test_a_name_a_line(named: Named, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("\ufeff# they stay\na dog\n\n  a  car \n")
    file = named("forgotten.txt", "a cat\r\nclock\r\n", retain={"concepts": "kept.txt"})
    recipe = Recipe.load(file)
    assert [concept.name for concept in recipe.forget.concepts] == ["a cat", "clock"]
    assert recipe.retain.concepts == ["a dog", "a  car"]


def test_the_run_does_not_depend_on_the_file(named: Named, cli: Cli, tmp_path: Path) -> None:
    file = named("list.csv", "name,anchor,paraphrases\ncat,dog,kitten\n", forget={"count": 2})
    assert cli("train", file, "--training.steps", "1").status == 0
    (tmp_path / "list.csv").unlink()
    refused(cli("plan", file), f"forget.concepts = '{tmp_path / 'list.csv'}': there is no such file.")
    run = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert run["forget"]["concepts"] == [{"name": "cat", "anchor": "dog", "templates": None, "placeholders": None}]
    assert run["evaluation"]["paraphrases"]["names"] == {"cat": ["kitten"]}
    assert cli("train", tmp_path / "run", "--resume").status == 0


def test_on_the_command_line_the_path_is_from_here(
    recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    (here / "list.csv").write_text("name\ncat\nclock\n")
    monkeypatch.chdir(here)
    assert cli("plan", recipe_file(), "--forget.concepts", "list.csv").status == 0
    refused(cli("plan", recipe_file(), "--forget.concepts", "cats.csv"), "forget.concepts = 'cats.csv': there is no")
    refused(cli("plan", recipe_file(), "--forget.concepts", "cat"), "forget.concepts = 'cat': is no list. Write [cat]")
    refused(cli("plan", recipe_file(), "--forget.concepts", "{fil: a.csv}"), "is no list. Write [cat], or a file: .csv")


def test_paraphrases_may_stand_beside_a_concept_in_the_recipe_too(recipe_file: RecipeFile) -> None:
    concepts = [{"name": "cat", "paraphrases": ["kitten", "kitty"]}, "clock"]
    recipe = Recipe.load(
        recipe_file(forget={"concepts": concepts}, evaluation={"paraphrases": {"names": {"cat": ["kitty", "tabby"]}}})
    )
    assert recipe.evaluation.model_dump()["paraphrases"]["names"] == {"cat": ["kitty", "tabby", "kitten"]}


def test_a_thousand_lines_are_fine(named: Named) -> None:
    lines = ["name,anchor,paraphrases"] + [f"artist {n},a painter,painter number {n}" for n in range(1000)]
    file = named("many.csv", "\n".join(lines))
    began = time.process_time()
    recipe = Recipe.load(file)
    assert len(recipe.forget.concepts) == 1000
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml())) == recipe
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("name", "content", "messages"),
    [
        ("l.csv", "name\ncat\n\n# no\n CAT \n", ["l.csv, line 5 = 'CAT': is there already", "l.csv, line 2"]),
        ("l.csv", "name,anchor\ncat,dog\nlion,Cat\n",
         ["l.csv, line 3, column anchor = 'Cat': is to be forgotten as well", "stays, such as 'dog'"]),
        ("l.csv", "name,anchor\ncat,lion\nlion,cat\n",
         ["l.csv, line 2, column anchor = 'lion': has 'cat' as its own anchor", "line 3), and both are"]),
        ("l.csv", "name,anchor\n,dog\n", ["l.csv, line 2 = None: is required."]),
        ("l.csv", "name,ancor\ncat,dog\n", ["line 1, which has the titles of the columns, says 'ancor'; Did you"]),
        ("l.csv", "cat\nlion\n", ["line 1, which has the titles of the columns, says 'cat'"]),
        ("l.csv", "anchor\ncat\n", ["has no 'name'"]),
        ("l.csv", "name,name\ncat,dog\n", ["line 1 has the column 'name' twice"]),
        ("l.csv", "name,anchor\nGogh, Vincent van,painter\n", ["line 2 has 3 cells and the first 2; a cell with"]),
        ("l.csv", 'name\ncat\n"lion\ndog\n', ["line 3 is no CSV: unexpected end of data"]),
        ("l.csv", "name,templates\ncat,a photo\n", ["l.csv, line 2, column templates = 'a photo': does not name"]),
        ("l.csv", "", ["lists nothing"]),
        ("l.csv", "name\n\n", ["lists nothing"]),
        ("l.csv", b"name\ncat\nMir\xf3\n", ["line 3 is no UTF-8. Save it as UTF-8 (in spreadsheets 'CSV UTF-8')."]),
        ("l.csv", "name\ncat".encode("utf-16"), ["line 1 is no UTF-8."]),
        ("l.csv", b"name\n" + b"x" * 5_000_000, ["has more than 4 MiB."]),
        ("l.csv", "name\n" + "".join(f"{n}\n" for n in range(5001)), ["has 5001 entries, and 5000 are the most."]),
        ("l.jsonl", '{"name": "cat"}\n{"name": ', ["line 2 is no JSON"]),
        ("l.jsonl", '{"name": "cat"}\n\n[1]\n', ["line 3 is neither a name nor a mapping with one."]),
        ("l.jsonl", '{"name": "cat", "anker": "dog"}\n', ["l.jsonl, line 1, column anker = 'dog': is unknown. Did"]),
        ("l.jsonl", '{"name": 7}\n', ["l.jsonl, line 1 = 7: must be a valid string."]),
        ("l.jsonl", "[" * 100_000, ["line 1 is no JSON"]),
        ("l.yaml", "{cat: dog}", ["it is no list."]),
        ("l.yaml", "- cat\n\n- 7\n", ["line 3 is neither a name nor"]),
        ("l.yaml", "- [cat", ["while parsing a flow sequence"]),
        ("l.txt", "cat\ndog\nCat\n", ["l.txt, line 3 = 'Cat': is there already:", "l.txt, line 1."]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_line_and_column(
    name: str, content: str | bytes, messages: list[str], named: Named, cli: Cli, tmp_path: Path
) -> None:
    file = named(name, content)
    refused(cli("train", file), *messages)
    assert {path.name for path in tmp_path.iterdir()} == {name, "recipe.yaml"}, "nothing is left behind"


def test_what_is_no_file_is_not_read(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    (tmp_path / "folder.txt").mkdir()
    for name in ("endless.csv", "folder.txt"):
        refused(cli("plan", recipe_file(forget={"concepts": name})), f"{name}': is no file.")


def test_of_very_many_problems_the_first_are_shown(named: Named, cli: Cli) -> None:
    result = cli("train", named("l.csv", "name\n" + "cat\n" * 1000))
    refused(result, "line 3 = 'cat'", "989 further problems of these entries are not shown.")
    assert len(result.err.splitlines()) < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concepts": ["cat", "clock", " Cat"]}, "forget.concepts.2 = ' Cat': is there already: forget.concepts.0."),
        ({"concepts": [{"name": "cat", "anchor": "clock"}, {"name": "clock", "anchor": "cat"}]},
         "forget.concepts.0.anchor = 'clock': has 'cat' as its own anchor (forget.concepts.1), and both are to be"),
        ({"concepts": [{"name": "cat", "anchor": "CLOCK"}, "clock"]},
         "forget.concepts.0.anchor = 'CLOCK': is to be forgotten as well (forget.concepts.1)."),
        ({"concepts": [f"thing {n}" for n in range(6)]},
         "forget.count = 4: is less than the number of concepts, 6: some, like 'thing 4', have no picture. "
         "Set it to 6 or more."),
    ],
)  # fmt: skip
def test_the_same_is_said_of_concepts_in_the_recipe(
    changes: dict[str, Any], message: str, recipe_file: RecipeFile, cli: Cli
) -> None:
    refused(cli("train", recipe_file(forget=changes)), message)


def test_every_concept_has_a_picture(named: Named, cli: Cli, tmp_path: Path) -> None:
    """More prompts than pictures: they are shared out among the concepts, not drawn by lot."""
    file = named(
        "l.txt", "".join(f"thing {n}\n" for n in range(9)),
        forget={"count": 9, "templates": [f"{word} {{concept}}" for word in ("a", "one", "my", "your", "the")]},
    )  # fmt: skip
    result = cli("prepare", file)
    assert result.status == 0
    assert "forget set: 9 pictures, 1" in result.out
    report = (tmp_path / "run" / "data_report.json").read_text()
    assert all(f'"thing {n}": 1' in report for n in range(9))


def test_python_callers_get_the_same(tmp_path: Path, recipe_file: RecipeFile) -> None:
    values = yaml.safe_load(recipe_file().read_text())
    (tmp_path / "l.csv").write_text("name\ncat\ncat\n")
    values["forget"]["concepts"] = str(tmp_path / "l.csv")
    with pytest.raises(UserError, match=r"l\.csv, line 3 = 'cat': is there already"):
        Recipe.parse(values)
