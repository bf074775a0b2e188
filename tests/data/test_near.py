"""Anchors and neighbours that a recipe leaves to the text encoder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fixtures import Cli, RecipeFile
from refusals import refused
from tiny import tiny_base_recipe, tiny_class_pipeline, tiny_sd3_pipeline, tiny_values, tiny_xl_pipeline
from transformers import AutoTokenizer, CLIPTextModel

from erasediff_lora import demo, denoisers
from erasediff_lora.data.near import choose_near
from erasediff_lora.recipe import Recipe, vocabulary
from erasediff_lora.recipe.public import public_recipe

WORDS = [
    *(
        "lion",
        "tiger",
        "wolf",
        "fox",
        "dog",
        "horse",
        "zebra",
        "bus",
        "lorry",
        "van",
        "bicycle",
        "train",
        "sun",
        "moon",
    ),
    *("star", "planet", "apple", "pear", "lemon", "orange", "plum", "clock", "watch", "hourglass", "sundial", "chair"),
    *("table", "lamp", "river", "mountain", "forest", "desert", "violin", "piano", "guitar", "trumpet"),
]
NEAR_CAT = ["cat", "Cats", "tabby cat", "CAT FISH", "kitten", "house", "red"]
"""That no neighbour of 'cat', of 'red house', or of the paraphrase 'kitten' can be."""
CONCEPTS = ["cat", "red house"]
PARAPHRASES = {"paraphrases": {"names": {"cat": ["Kitten"]}}}


def by_brute_force(base: Path, concepts: list[str], words: list[str]) -> dict[str, list[tuple[str, float]]]:
    """Every word by itself through transformers' own classes, and the rest in numpy."""
    tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder").eval()

    def vector(word: str) -> Any:
        with torch.no_grad():
            states = encoder(**tokenizer(word, return_tensors="pt")).last_hidden_state
        return states[0, 1:].double().mean(dim=0).numpy()

    table = np.stack([vector(word) for word in words])
    centre = table.mean(axis=0)
    found = {}
    for concept in concepts:
        query = vector(concept) - centre
        cosines = (table - centre) @ query / np.linalg.norm(table - centre, axis=1) / np.linalg.norm(query)
        found[concept] = sorted(zip(words, cosines, strict=True), key=lambda item: -item[1])
    return found


def test_neighbours_are_the_nearest_by_brute_force(
    recipe_file: RecipeFile, tiny_base: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "words.txt").write_text("# mine\n" + "\n".join([*WORDS, *NEAR_CAT, "Lion"]))
    file = recipe_file(
        forget={"concepts": CONCEPTS}, retain={"neighbours": 3, "vocabulary": "words.txt", "concepts": ["Dog", "car"]},
        evaluation=PARAPHRASES,
    )  # fmt: skip
    assert cli("prepare", file).status == 0
    found = json.loads((tmp_path / "run" / "near.json").read_text())
    known = [{"dog": "Dog"}.get(word, word) for word in WORDS]
    for concept, expected in by_brute_force(tiny_base, CONCEPTS, known).items():
        ours = found["neighbours"][concept]
        assert [row["word"] for row in ours] == [word for word, _ in expected[:3]]
        assert [row["cosine"] for row in ours] == pytest.approx([cosine for _, cosine in expected[:3]], abs=2e-5)
    assert found["anchors"] == {}, "random_anchor draws them, as before"


def test_the_run_says_what_was_found_and_needs_nothing_else(
    recipe_file: RecipeFile, tmp_path: Path, cli: Cli, tiny_base: Path
) -> None:
    words = tmp_path / "words.csv"
    words.write_text("name\n" + "\n".join(WORDS))
    file = recipe_file(
        forget={"concepts": ["cat", {"name": "clown", "anchor": "car"}]}, objective={"target": "anchor"},
        retain={"neighbours": 2, "vocabulary": "words.csv", "count": 8},
    )  # fmt: skip
    result = cli("train", file)
    assert result.status == 0
    run = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    found = json.loads((tmp_path / "run" / "near.json").read_text())
    near = run["retain"]["neighbours"]
    assert near == {name: [row["word"] for row in rows] for name, rows in found["neighbours"].items()}
    assert run["retain"]["concepts"] == list(dict.fromkeys(["dog", "car", *near["cat"], *near["clown"]]))
    assert run["retain"]["vocabulary"] is None
    anchors = {concept["name"]: concept["anchor"] for concept in run["forget"]["concepts"]}
    nearest = by_brute_force(tiny_base, ["cat"], run["retain"]["concepts"])["cat"][0]
    assert anchors == {"cat": nearest[0], "clown": "car"}
    assert [row["word"] for row in found["anchors"]["cat"]] == [nearest[0]]
    assert f"anchor of 'cat': '{nearest[0]}'" in result.err and "neighbours of 'clown': " in result.err
    assert cli("train", file, "--resume").status == 0, "the same is found again"
    refused(cli("train", file, "--resume", "--retain.neighbours", "1"), "retain.neighbours = {", "was {")
    words.unlink()
    assert cli("train", tmp_path / "run", "--resume").status == 0
    assert cli("evaluate", tmp_path / "run").status == 0


@pytest.mark.parametrize("anchor", ["auto", None])
def test_the_nearest_retained_concept_takes_the_place(anchor: str | None, tiny_base: Path, tmp_path: Path) -> None:
    """It is not forgotten itself, no other name for the concept, and neither a part of its name nor a name with it."""
    kept = ["tabby cat", "kitten", "house", *WORDS]
    sections: dict[str, Any] = {
        "forget": {"concepts": [{"name": name, "anchor": anchor} for name in CONCEPTS]},
        "retain": {"concepts": kept, "count": 60},
        "evaluation": PARAPHRASES,
    }
    if anchor is None:
        sections["objective"] = {"target": "anchor"}
    recipe = Recipe.parse(tiny_values(tiny_base, tmp_path, **sections))
    chosen = choose_near(recipe, denoisers.load(recipe.model))
    expected = by_brute_force(tiny_base, CONCEPTS, WORDS)
    assert [concept.anchor for concept in chosen.forget.concepts] == [expected[name][0][0] for name in CONCEPTS]
    assert choose_near(chosen, None) is chosen, "nothing is open any more"


def test_the_second_time_no_encoder_is_loaded(tiny_base: Path, tmp_path: Path) -> None:
    values = tiny_values(tiny_base, tmp_path, retain={"neighbours": 5}, forget={"concepts": ["cat", "clock"]})
    recipe = Recipe.parse(values)
    first = choose_near(recipe, denoisers.load(recipe.model))
    again: Any = denoisers.load(recipe.model)
    assert choose_near(recipe, again) == first
    assert again._pipeline is None
    near = first.retain.neighbours
    assert isinstance(near, dict) and [len(words) for words in near.values()] == [5, 5]


def test_words_the_embedded_model_learned_are_near_to_their_concepts(tmp_path: Path) -> None:
    others = {name: concept for concept, names in demo.SYNONYMS.items() for name in names if concept not in name}
    forget = {"concepts": list(others), "count": len(others)}
    kept = {"concepts": demo.CONCEPTS, "count": 60}
    recipe = Recipe.parse(
        tiny_values(demo.MODEL_DIR, tmp_path, forget=forget, retain=kept, objective={"target": "anchor"})
    )
    chosen = choose_near(recipe, denoisers.load(recipe.model))
    assert {concept.name: concept.anchor for concept in chosen.forget.concepts} == others


def test_the_embedded_model_has_no_more_than_its_words(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "r.yaml"
    values = tiny_values(Path("demo"), tmp_path, retain={"neighbours": 20, "concepts": ["dog"]})
    file.write_text(yaml.safe_dump(values))
    result = cli("prepare", file)
    assert "retain.neighbours: 20, and there are only 9 words that can be one" in result.err
    words = [row["word"] for row in json.loads((tmp_path / "run/near.json").read_text())["neighbours"]["cat"]]
    assert sorted(words) == sorted({*demo.CONCEPTS} - {"cat"})
    assert (
        "10 pictures for" not in result.err and "retain.count: 4 pictures for 10 concepts, so 6 have none" in result.err
    )


@pytest.mark.parametrize("family", ["stable_diffusion_xl", "stable_diffusion_3"])
def test_other_families_have_encoders_too(family: str, tmp_path: Path) -> None:
    pipeline = {"stable_diffusion_xl": tiny_xl_pipeline, "stable_diffusion_3": tiny_sd3_pipeline}[family]()
    pipeline.save_pretrained(tmp_path / "base")
    model = {"base": str(tmp_path / "base"), "family": family}
    recipe = Recipe.parse(tiny_values(tmp_path / "base", tmp_path, model=model, retain={"neighbours": 2}))
    near = choose_near(recipe, denoisers.load(recipe.model)).retain.neighbours
    assert isinstance(near, dict) and len(near["cat"]) == 2


def test_classes_have_no_text_encoder(tmp_path: Path, cli: Cli) -> None:
    tiny_class_pipeline({0: "cat", 1: "dog", 2: "car"}).save_pretrained(tmp_path / "base")
    sections: dict[str, Any] = {
        "model": {"base": str(tmp_path / "base"), "family": "class_conditional"},
        "forget": {"concepts": ["cat"], "templates": ["{concept}"], "count": 4},
        "retain": {"concepts": ["dog", "car"], "templates": ["{concept}"], "count": 4},
    }
    file = tiny_base_recipe(tmp_path / "base", tmp_path, **sections)
    result = cli("train", file, "--retain.neighbours", "2", "--objective.target", "anchor")
    refused(
        result,
        "retain.neighbours = 2: are found by a text encoder, and class_conditional has none. List them: {concept: [",
        "'cat' has no anchor, and objective.target: anchor wants one; class_conditional has no text encoder to choose",
    )
    assert cli("prepare", file, "--retain.neighbours", "{cat: [dog]}").status == 0


@pytest.mark.parametrize(
    ("sections", "messages"),
    [
        ({"retain": {"neighbours": -1}}, ["retain.neighbours = -1: must be a number from 0 on, or {concept:"]),
        ({"retain": {"neighbours": "many"}}, ["retain.neighbours = 'many': must be a number"]),
        ({"retain": {"neighbours": {"cat": "dog"}}}, ["must be a number from 0 on, or {concept: [word"]),
        ({"retain": {"neighbours": {"cta": ["dog"]}}}, ["neighbours = 'cta': is not to be forgotten.", "'cat'?"]),
        ({"retain": {"neighbours": {"cat": ["Cat"]}}}, ["retain.neighbours.cat = 'Cat': is to be forgotten as well."]),
        ({"retain": {"neighbours": 3, "vocabulary": "noun"}},
         ["retain.vocabulary = 'noun': is no list of words. Did you mean 'nouns'? Or give a file of words"]),
        ({"retain": {"neighbours": 3, "vocabulary": "words.txt"}}, ["words.txt': there is no such file."]),
        ({"retain": {"neighbours": 20_000}}, ["retain.neighbours = 20000: of 1 concepts are more than 10,000."]),
        ({"retain": {"neighbours": 3, "templates": ["a photo"], "concepts": []}},
         ["retain.neighbours = 3: fill the {concept} of templates, and no template of retain has one."]),
        ({"retain": {"neighbours": 3, "images": {"folder": "."}}},
         ["retain.neighbours = 3: are drawn by the base, and retain.images reads pictures."]),
        ({"objective": {"target": "anchor"}, "retain": {"templates": ["a photo"], "concepts": []}},
         ["'cat' has no anchor, and objective.target: anchor wants one; there is nothing to choose it from. List ret"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_loaded(
    sections: dict[str, Any], messages: list[str], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file(**sections)
    refused(cli("train", file), *messages)
    assert list(tmp_path.iterdir()) == [file]


def test_where_no_retained_concept_can_be_an_anchor(recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(objective={"target": "anchor"}, retain={"concepts": ["tabby cat"]})
    refused(cli("train", file), "retain.concepts = ['tabby cat']: leaves no anchor: each is a part of what is to be")


def test_a_list_without_a_neighbour(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("cats\ntabby cat\n")
    file = recipe_file(retain={"neighbours": 2, "vocabulary": "words.txt", "concepts": []})
    refused(cli("prepare", file), "words.txt': has no word that can be a neighbour: each is a part of what is to be")


def test_where_a_list_lies_is_nobodys_business(tiny_base: Path, tmp_path: Path) -> None:
    words = tmp_path / "private" / "words.txt"
    recipe = Recipe.parse(tiny_values(tiny_base, tmp_path, retain={"vocabulary": str(words)}))
    assert public_recipe(recipe)["retain"]["vocabulary"] == "words.txt"


def test_the_lists_of_the_package() -> None:
    sizes = {name: len(vocabulary.read_words(name)) for name in vocabulary.shipped()}
    assert sizes == {"artists": 5263, "imagenet": 998, "nouns": 3852}
    card = (vocabulary.FOLDER / "README.md").read_text()
    for name, size in sizes.items():
        assert f"| `{name}` | {size:,} |" in card
    every = vocabulary.read_words(None)
    assert len({re.sub(r"[\s_-]+", " ", word.casefold()) for word in every}) == len(every) > 9000
    assert {"lion", "hourglass", "Claude Monet", "tench"} <= {*every}
