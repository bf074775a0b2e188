"""Other words for a concept, from files and the shipped list; a linear probe against a plain ridge regression."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Cli, RecipeFile
from refusals import refused
from tiny import tiny_base_recipe, tiny_classifier
from torch import nn

from erasediff_lora import demo
from erasediff_lora.cli import main
from erasediff_lora.evaluation.attacks.linear_probe import held_out_accuracy, middle_of
from erasediff_lora.evaluation.attacks.other_words import SHIPPED, read

LIST = '\ufeffconcept,kind,word\r\nCat,language,gato\ncat,language,chat\n\ncat,parts,"ears, a tail"\nowl,parts,beak\n'


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Path, dict[str, Any]]:
    """By a judge who sees cats everywhere."""
    root = tmp_path_factory.mktemp("words")
    (root / "words.csv").write_text(LIST)
    judge = tiny_classifier(root / "judge", ["cat", "dog", "car"], favourite="cat")
    evaluation = {
        "judge": f"transformers:{judge}",
        "metrics": ["accuracy"],
        "attacks": ["other_words", "linear_probe"],
        "other_words": {"file": str(root / "words.csv"), "samples": 4},
        "linear_probe": {"samples": 8, "noise": [0.3, 1.0]},
        "forget_samples": 8,
        "retain_samples": 8,
    }
    file = tiny_base_recipe(tiny_base, root, evaluation=evaluation, training={"steps": 1})
    assert main(["train", str(file)]) == 0
    found: dict[str, Any] = json.loads((root / "run/evaluation.json").read_text())
    return root, found


def test_a_try_is_a_kind_of_words(result: tuple[Path, dict[str, Any]]) -> None:
    found = result[1]["attacks"]["other_words"]
    assert found["budget"] == "words: 2 of language, 1 of parts; 4 pictures for each kind"
    assert found["models"]["erased"]["tries"] == {"language": 1.0, "parts": 1.0}
    assert found["models"]["base"]["by_word"] == {"gato": 1.0, "chat": 1.0, "ears, a tail": 1.0}


def test_the_probe_is_told_of_beside_base_and_budget(result: tuple[Path, dict[str, Any]]) -> None:
    root, numbers = result
    found = numbers["attacks"]["linear_probe"]
    assert found["budget"] == "8 pictures and as many others, noised by 30%, 100%"
    for model in ("erased", "base"):
        told = found["models"][model]
        assert told["tries"].keys() == {"30%", "100%"} and all(0 <= value <= 1 for value in told["tries"].values())
        assert told["held_out"] == 8
    page = (root / "run/report.html").read_text()
    assert "of 8 told apart (50% by chance)" in page and "Budget: 8 pictures and as many others" in page
    assert all(row["attack"] != "linear_probe" for row in numbers["verdict"][-1]["attacks"]), "it brings nothing back"


def test_comparisons_call_the_probe_no_success(result: tuple[Path, dict[str, Any]], cli: Cli, tmp_path: Path) -> None:
    told = cli("compare", result[0] / "run", "--output", tmp_path / "c.html").out
    assert "| linear probe, told apart, base (50% by chance) |" in told and "attack success, linear probe" not in told
    assert "| budget, other words | words: 2 of language, 1 of parts; 4 pictures for each kind |" in told


def test_the_same_protocol_gives_the_same_probe(result: tuple[Path, dict[str, Any]], tiny_base: Path) -> None:
    root, numbers = result
    elsewhere = ["evaluate", str(root / "run"), "--cache", str(root / "other"), "--output", str(root / "again")]
    assert main([*elsewhere, "--recipe", str(root / "run/recipe.yaml")]) == 0
    again = json.loads((root / "again/evaluation.json").read_text())
    assert again["attacks"] == numbers["attacks"] and again["protocol"] == numbers["protocol"]


def test_held_out_accuracy_is_that_of_ridge_regression() -> None:
    generator = np.random.default_rng(1)
    classes = np.repeat([1.0, -1.0], 20)
    features = generator.normal(size=(40, 6)) + 0.8 * classes[:, None] * np.array([1, 0, 0, 1, 0, 0])
    train, test = np.arange(40) % 2 == 0, np.arange(40) % 2 == 1
    mean, deviation = features[train].mean(axis=0), features[train].std(axis=0, ddof=1)
    known, asked = (features[train] - mean) / deviation, (features[test] - mean) / deviation
    strength = 1.0 / len(known) * known.shape[1]
    weights = np.linalg.solve(known.T @ known + strength * np.eye(6), known.T @ classes[train])
    right = (asked @ weights) * classes[test] > 0
    wanted = (right[classes[test] == 1].mean() + right[classes[test] == -1].mean()) / 2
    found = held_out_accuracy(torch.tensor(features), torch.tensor(classes))
    assert found == pytest.approx(wanted) and 0.7 < found <= 1
    chance = held_out_accuracy(torch.tensor(generator.normal(size=(400, 6))), torch.tensor([1.0] * 200 + [-1.0] * 200))
    assert 0.4 < chance < 0.6


def test_the_middle_of_a_transformer_is_that_of_its_longest_row() -> None:
    network = nn.Module()
    network.short = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
    network.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(5))
    assert middle_of(network) is network.blocks[2]


def test_the_shipped_list_has_every_concept_of_the_embedded_model() -> None:
    known = read(SHIPPED)
    assert known.keys() == set(demo.CONCEPTS)
    for kinds in known.values():
        assert kinds.keys() == {"language", "superclass", "subclass", "parts"} and len(kinds["language"]) >= 5
    with SHIPPED.open(encoding="utf-8") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"concept;kind;word\n", "line 1 has no column 'concept'"),
        (b"concept,word\ncat,gato\n", "line 1 has no column 'kind'"),
        (b"concept,kind,word\ncat,language,gato\ncat,language,\n", "row 3 has no word"),
        (b"concept,kind,word\ncat\n", "row 2 has no kind"),
        (b"concept,kind,word\ncat,language,\xff\xfe\n", "is no CSV in UTF-8"),
        (b'concept,kind,word\ncat,language,"gato\n', "is no CSV in UTF-8"),
        (b"", "line 1 has no column 'concept'"),
    ],
)
def test_malformed_lists(text: bytes, said: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_bytes(text)
    asked = {"attacks": ["other_words"], "other_words": {"file": str(tmp_path / "words.csv")}}
    refused(cli("train", recipe_file(evaluation=asked)), "evaluation.other_words.file = ", said)


def test_other_bad_options(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    asked = {"attacks": ["other_words", "linear_probe"]}
    gone = asked | {"other_words": {"file": str(tmp_path / "gone.csv")}}
    refused(cli("train", recipe_file(evaluation=gone)), "cannot be read: No such file")
    odd = asked | {"other_words": {"kinds": ["slang"]}}
    refused(cli("train", recipe_file(evaluation=odd)), "'slang'", "is no kind of the list", "It has: language, parts")
    refused(cli("train", recipe_file(evaluation=asked | {"linear_probe": {"noise": [0]}})), "linear_probe.noise = 0.0")
