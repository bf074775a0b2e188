"""Templates are filled by one function, everywhere, and names of concepts are words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from encoded import anchors, captions, class_folders, counts, folder_of, noise, shown
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.data.prompts import is_named, substitute
from erasediff_lora.evaluation.pictures import forget_prompts
from erasediff_lora.recipe import Recipe

STYLED = {"templates": ["a {style} drawing of a {concept}"], "placeholders": {"style": ["noto", "flat"]}}


def images(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"images": {"folder": str(folder), **fields}}


def test_pictures_without_caption_get_filled_templates(prepare: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", **{f"{index:02}": noise(index) for index in range(12)})
    found = captions(prepare(forget=STYLED | images(folder)))
    assert set(found) == {"a noto drawing of a cat", "a flat drawing of a cat"}
    assert captions(prepare(forget=STYLED | images(folder))) == found, "by seed and number of the picture"
    assert captions(prepare(forget=STYLED | images(folder), sampling={"seed": 1})) != found
    fewer = folder_of(tmp_path / "fewer", **{f"{index:02}": noise(index) for index in range(6)})
    assert captions(prepare(forget=STYLED | images(fewer))) == found[:6]


def test_what_is_known_of_a_picture_fills_its_template(prepare: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0), b=noise(1))
    rows = [{"file_name": "a.png", "style": "flat"}, {"file_name": "b.png", "style": "noto"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert captions(prepare(forget=STYLED | images(folder))) == ["a flat drawing of a cat", "a noto drawing of a cat"]


def test_one_caption_for_folders_of_concepts(prepare: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures", "dog", "car", each=1)
    caption = "a {{small}} {style} {concept}"
    data = prepare("retain", retain=images(folder, caption=caption) | {"placeholders": {"style": ["red"]}})
    assert captions(data) == ["a {small} red car", "a {small} red dog"]
    assert shown(data) == ["car", "dog"] and data.names == ["dog", "car"]


def test_captions_of_pictures_keep_their_own_braces(prepare: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0), b=noise(1))
    (folder / "a.txt").write_text("a {style} {concept} of {wood} }{")
    (folder / "b.txt").write_text("a {concept}")
    data = prepare(forget={"templates": ["{concept}"], "placeholders": {"style": ["old"]}} | images(folder))
    assert captions(data) == ["a old cat of {wood} }{", "a cat"]
    assert counts(data.report.noted)["BRACES"] == {"a old cat of {wood} }{": 1}


@pytest.mark.parametrize(("template", "what"), [
    ("a {style} {concept}", "{style} has no values. List them under forget.placeholders.style."),
    ("a {concept!r}", "is not a template: between braces stands a name and nothing else"),
    ("a {concept:>9}", "is not a template"), ("a {0} {concept}", "is not a template"),
    ("a {concept", "is not a template"),
    ("a {} {concept}", "is not a template"), ("a picture", "does not name the concept. Put {concept} into it."),
])  # fmt: skip
def test_templates_that_cannot_be_filled(recipe_file: RecipeFile, cli: Cli, template: str, what: str) -> None:
    refused(cli("prepare", recipe_file(forget={"templates": [template]})), "forget.templates = ", what)
    concept = {"name": "cat", "templates": [template]}
    refused(cli("prepare", recipe_file(forget={"concepts": [concept]})), "forget.concepts.0.templates = ", "")


def test_captions_that_cannot_be_filled(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", a=noise(0))
    refused(
        cli("prepare", recipe_file(retain=images(folder, caption="a {style} thing"))),
        "retain.images.caption = 'a {style} thing': {style} has no values. List them under retain.placeholders.style.",
    )
    refused(
        cli("prepare", recipe_file(retain=images(folder, caption="a {concept}"))),
        "has no label for the {concept} of 'a {concept}'. Put it into a folder named after its concept",
    )


OBJECT_AND_STYLE = [
    {"name": "cat", "anchor": "dog", "templates": ["a {style} {concept}"], "placeholders": {"style": ["red", "blue"]}},
    {"name": "van gogh", "anchor": "monet", "templates": ["a {thing} by {concept}"],
     "placeholders": {"thing": ["sea", "tree", "town", "road"]}},
]  # fmt: skip


def test_an_object_and_a_style_in_one_recipe(prepare: Any, recipe_file: RecipeFile) -> None:
    forget = {"concepts": OBJECT_AND_STYLE, "count": 8}
    data = prepare(forget=forget, objective={"target": "anchor"})
    assert list(zip(captions(data), anchors(data), shown(data), strict=True)) == [
        ("a red cat", "a red dog", "cat"), ("a sea by van gogh", "a sea by monet", "van gogh"),
        ("a blue cat", "a blue dog", "cat"), ("a tree by van gogh", "a tree by monet", "van gogh"),
        ("a red cat", "a red dog", "cat"), ("a town by van gogh", "a town by monet", "van gogh"),
        ("a blue cat", "a blue dog", "cat"), ("a road by van gogh", "a road by monet", "van gogh"),
    ]  # fmt: skip
    recipe = Recipe.load(recipe_file(forget=forget))
    assert [prompt.text for prompt in forget_prompts(recipe)] == captions(data)
    assert Recipe.parse(recipe.model_dump(mode="json")).sha256() == recipe.sha256()


def test_concepts_with_and_without_templates(prepare: Any, tmp_path: Path, recipe_file: RecipeFile, cli: Cli) -> None:
    concepts = ["cat", OBJECT_AND_STYLE[1]]
    data = prepare(forget={"concepts": concepts, "count": 8})
    assert captions(data)[::2] == ["a photo of a cat"] * 4
    folder = class_folders(tmp_path / "pictures", "cat", "van gogh", each=1)
    assert captions(prepare(forget={"concepts": concepts} | images(folder)))[0] == "a photo of a cat"
    assert captions(prepare(forget={"concepts": concepts} | images(folder)))[1].endswith(" by van gogh")
    refused(
        cli("prepare", recipe_file(forget={"concepts": concepts, "templates": []})),
        "forget.templates = []: is required. Add prompts with {concept}, or templates to every concept.",
    )
    values = {"forget": {"concepts": [OBJECT_AND_STYLE[1]]}, "retain": {"templates": ["x"]}, "model": {"base": "x/y"}}
    assert Recipe.parse(values | {"objective": {"target": "anchor"}}).forget.templates == []


@pytest.mark.parametrize(("text", "concept", "anchor", "expected"), [
    ("a car on a scarf", "car", "truck", "a truck on a scarf"),
    ("a cat on a catamaran", "cat", "dog", "a dog on a catamaran"),
    ("a Cat, CAT; cat's cats", "cat", "dog", "a dog, dog; dog's dogs"),
    ("two foxes and a butterfly", "fox", "butterfly", "two butterflies and a butterfly"),
    ("buses", "bus", "church", "churches"),
    ("a house\nby Van  Gogh.", "van gogh", "monet", "a house\nby monet."),
    ("C++ and Cython", "c++", "rust", "rust and Cython"),
    ("一只猫在树上", "猫", "狗", "一只狗在树上"),
    ("a caterpillar", "cat", "dog", "dog"),
    ("cat_ears", "cat", "dog", "dog"),
    ("an x-ray of a ray", "ray", "shark", "an x-ray of a shark"),
    ("X-ray", "ray", "shark", "shark"),
    ("a T-shirt", "t-shirt", "dress", "a dress"),
    ("a Van Gogh-style bed", "van gogh", "monet", "a monet-style bed"),
    ("R2-D2's friends, R2-D20", "R2-D2", "a robot", "a robot's friends, R2-D20"),
    ("two cafe\u0301s by the cafe\u0301", "caf\u00e9", "pub", "two pubs by the pub"),
    ("by Mr. T (A-Team)", "Mr. T (A-Team)", "a man", "by a man"),
    ("a [x] or a.x", "a.x", "y", "a [x] or y"),
])  # fmt: skip
def test_names_are_words(text: str, concept: str, anchor: str, expected: str) -> None:
    assert substitute(text, concept, anchor) == expected
    assert is_named(text, concept) == (expected != anchor or text.casefold() == concept)


def test_anchors_of_one_concept_and_of_another_that_takes_any(prepare: Any) -> None:
    data = prepare(forget={"concepts": [{"name": "cat", "anchor": "cow"}, "rose"], "count": 2})
    texts = [[data.prompts[index] for index in row] for row in data.anchors.tolist()]
    assert texts == [["a photo of a cow"] * 2, ["a photo of a dog", "a photo of a car"]]


def test_a_concept_within_another_keeps_its_pictures_apart(prepare: Any, tmp_path: Path) -> None:
    """By label, and not by what the captions say."""
    concepts = [{"name": "cat", "anchor": "dog"}, {"name": "caterpillar", "anchor": "snail"}]
    folder = class_folders(tmp_path / "pictures", "cat", "caterpillar", each=1)
    (folder / "caterpillar/0.txt").write_text("a caterpillar beside a cat")
    data = prepare(forget={"concepts": concepts} | images(folder), objective={"target": "anchor"})
    assert anchors(data) == ["a photo of a dog", "a snail beside a cat"]
    assert data.rows_of("cat") == [0] and data.rows_of("caterpillar") == [1]


def test_the_concept_of_drawn_pictures_is_kept(prepare: Any) -> None:
    data = prepare(forget={"concepts": ["cat", "caterpillar"], "count": 4})
    again = prepare(forget={"concepts": ["cat", "caterpillar"], "count": 4})
    for found in (data, again):
        assert found.names == ["cat", "caterpillar"] and found.concepts.tolist() == [0, 1, 0, 1]
    assert shown(prepare("retain")) == ["dog", "car"] * 2
