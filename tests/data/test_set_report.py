"""The account of a set: printed by `prepare`, kept in the run's folder, there from the cache as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from encoded import Prepare, captions, class_folders, counts, folder_of, noise
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused

from erasediff_lora.errors import UserError
from erasediff_lora.evaluation.report import write_report


def images(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"images": {"folder": str(folder), **fields}}


def messy(root: Path) -> dict[str, Any]:
    """Sections of a recipe whose pictures have everything."""
    forget = class_folders(root / "forget", "cat", "clock")
    noise(0).save(forget / "cat/twice.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 100)).save(forget / "cat/clear.png")
    (forget / "cat/notes.pdf").write_bytes(b"x")
    (forget / "cat/1.txt").write_text("a cat " + "and " * 40)
    retain = folder_of(root / "retain", a=noise(50), b=noise(0))
    (retain / "a.txt").write_text("a dog chasing a Cat")
    (retain / "b.txt").write_text("a dog on a catamaran")
    return {"forget": images(forget), "retain": images(retain)}


def test_prepare_and_train_give_the_same_account(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file(**messy(tmp_path))
    result = cli("prepare", file)
    assert result.status == 0, result.err
    report = json.loads((tmp_path / "run/data_report.json").read_text())
    long = ("a cat " + "and " * 40).strip()
    assert report["forget"] == {
        "pictures": 4,
        "drawn": False,
        "concepts": {"cat": 4},
        "left_out": {
            "no_picture": {"count": 1, "examples": {".pdf": 1}},
            "other_label": {"count": 2, "examples": {"clock": 2}},
        },
        "noted": {
            "no_caption": {
                "count": 3,
                "examples": {str(tmp_path / f"forget/cat/{name}.png"): 1 for name in ("0", "clear", "twice")},
            },
            "flattened": {"count": 1, "examples": {str(tmp_path / "forget/cat/clear.png"): 1}},
            "duplicate": {"count": 1, "examples": {str(tmp_path / "forget/cat/twice.png"): 1}},
            "cut_caption": {"count": 1, "examples": {long: 1}},
        },
    }
    assert report["retain"]["noted"] == {
        "names_forgotten": {"count": 1, "examples": {"a dog chasing a Cat": 1}},
        "in_both": {"count": 1, "examples": {str(tmp_path / "retain/b.png"): 1}},
    }
    assert "forget set: 4 pictures, 7 prompts; see" in result.out, "captions, anchors, and the empty one"
    assert "left out: labelled otherwise" in result.out and "clock (2)" in result.out
    assert "captions that name what is to be forgotten" in result.out and "a dog chasing a Cat" in result.out

    (tmp_path / "run/data_report.json").unlink()
    assert cli("train", file).status == 0, "from the cache"
    assert json.loads((tmp_path / "run/data_report.json").read_text()) == report


def test_drawn_sets_have_an_account(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    retain = {"concepts": ["dog", "car"], "templates": ["a {concept}", "a {concept} with two cats"], "count": 4}
    result = cli("prepare", recipe_file(retain=retain))
    assert result.status == 0 and "2  a dog with two cats, a car with two cats" in result.out
    report = json.loads((tmp_path / "run/data_report.json").read_text())
    assert report["forget"] == {"pictures": 4, "drawn": True, "concepts": {"cat": 4}, "left_out": {}, "noted": {}}
    assert report["retain"]["concepts"] == {"dog": 2, "car": 2}
    assert report["retain"]["noted"]["names_forgotten"]["count"] == 2


def test_the_table_shows_what_a_terminal_may_be_shown(prepare: Prepare, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0))
    (folder / "a.txt").write_text("a {cat}\x1b[31m" + "!" * 100)
    table = prepare(forget=images(folder)).report.table()
    assert r"a {cat}\x1b[31m!!!" in table and "\x1b" not in table and max(map(len, table.splitlines())) < 160


FAR = "a picture " + "of grass " * 6
"""The tiny tokenizer reads letters, and 32 of them."""


def test_a_concept_behind_the_cut_is_refused(recipe_file: RecipeFile, cli: Cli, prepare: Any, tmp_path: Path) -> None:
    forget = {"concepts": [{"name": "cat", "anchor": "dog"}], "templates": [FAR + "with a {concept}"]}
    for target in ("anchor", "random_anchor", "uncond", "uniform"):
        result = cli("prepare", recipe_file(forget=forget, objective={"target": target}))
        refused(
            result,
            "forget.templates = 'a picture of grass",
            "names the concept only behind the last token that the model reads: nothing would be erased.",
            "Name the concept near the beginning.",
        )
    folder = folder_of(tmp_path / "pictures", a=noise(0), b=noise(1))
    (folder / "a.txt").write_text("a cat, " + FAR)
    (folder / "b.txt").write_text(FAR + "and a cat")
    with pytest.raises(UserError, match=r"forget.images = 'a picture of grass.*behind the last token"):
        prepare(forget=images(folder), objective={"target": "random_anchor"})
    (folder / "b.txt").unlink()
    data = prepare(forget=images(folder), objective={"target": "random_anchor"})
    assert counts(data.report.noted)["CUT_CAPTION"] == {captions(data)[0]: 1}


def test_a_caption_that_is_its_own_anchor_is_refused(prepare: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0))
    (folder / "a.txt").write_text("dog")
    with pytest.raises(UserError, match="reads the same as what is to take its place: nothing would be erased"):
        prepare(
            forget={"concepts": [{"name": "cat", "anchor": "dog"}]} | images(folder), objective={"target": "anchor"}
        )


def test_the_page_shows_what_the_sets_are_made_of(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Markup in names of files is text; an account that is not ours is left out."""
    assert cli("train", recipe_file()).status == 0
    run = tmp_path / "run"
    report = json.loads((run / "data_report.json").read_text())
    report["forget"]["left_out"]["unreadable"] = {"count": 2, "examples": {"<b>.png": 2}}
    (run / "data_report.json").write_text(json.dumps(report))
    write_report(run)
    page = (run / "report.html").read_text()
    assert "What it was trained on" in page and "left out: not readable" in page and "&lt;b&gt;.png (2)" in page
    for foreign in ("[1]", '{"forget": 3, "retain": {}}', "{", '{"forget": {"concepts": {}, "left_out": {"x": 1}}}'):
        (run / "data_report.json").write_text(foreign)
        write_report(run)
        assert "What it was trained on" not in (run / "report.html").read_text()
