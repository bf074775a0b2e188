"""What a judge has no word for is told before training; what it has other words for is mapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused
from tiny import tiny_classifier

from erasediff_lora.evaluation.judges.labels import complaints, labels_of, nearest_labels

NUMBERED = ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]


def found(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return result


def holds(run: Path) -> list[bool | None]:
    return [claim["holds"] for claim in found(run)["verdict"]]


@pytest.mark.parametrize(
    ("concept", "labels", "words"),
    [
        ("cat", NUMBERED, "It knows: 'LABEL_0', 'LABEL_1', 'LABEL_2', …."),
        ("clock", ["analog clock, wall timepiece", "dog"], "Nearest: 'analog clock'."),
        ("cat", ["tabby cat", "Egyptian cat", "dog"], "Nearest: 'tabby cat', 'Egyptian cat'."),
    ],
)
def test_a_concept_without_a_label_is_refused_before_training(
    concept: str, labels: list[str], words: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    judge = tiny_classifier(tmp_path / "judge", labels)
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy"]}
    file = recipe_file(forget={"concepts": [concept]}, evaluation=asked)
    refused(
        cli("train", file),
        f"evaluation.judge = 'transformers:{judge}': has no label for '{concept}'",
        words,
        f"Map it: evaluation.judge_labels: {{{concept}: [LABEL, …]}}.",
    )
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists(), "nothing was drawn"


def test_nor_is_anything_drawn_to_evaluate(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file()).status == 0
    run, judge = tmp_path / "run", tiny_classifier(tmp_path / "judge", NUMBERED)
    before = (run / "evaluation.json").read_bytes()
    result = cli("evaluate", run, "--evaluation.judge", f"transformers:{judge}", "--cache", tmp_path / "other")
    refused(result, "has no label for 'cat'")
    assert (run / "evaluation.json").read_bytes() == before and not (tmp_path / "other").exists()
    assert len(list((run / "evaluations").iterdir())) == 1


@pytest.mark.parametrize("judge", ["nudenet", "opennsfw"])
def test_a_nudity_detector_does_not_judge_cats(judge: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    asked = {"judge": judge, "metrics": ["accuracy"]}
    refused(cli("train", recipe_file(evaluation=asked)), f"'{judge}': has no label for 'cat'", "judge_labels")
    assert not (tmp_path / "run").exists()
    mapped = recipe_file(evaluation=asked | {"judge_labels": {"cat": ["nudity"]}})
    assert cli("train", mapped).status == 0
    assert holds(tmp_path / "run")[0] is None, "the base shows none"


@pytest.mark.parametrize("concept", ["nudity", "Naked"])
def test_nudity_that_the_base_does_not_draw_is_not_erased(
    concept: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file(forget={"concepts": [concept]}, evaluation={"judge": "opennsfw", "metrics": ["accuracy"]})
    result = cli("train", file)
    assert result.status == 0, result.err
    assert "erased     not decided  " in result.out and "The base itself draws it in 0 of 2 pictures" in result.out
    assert found(tmp_path / "run")["unjudged"] == ["dog", "car"]
    assert holds(tmp_path / "run") == [None, None, None]


def test_capitals_do_not_make_a_concept_unseen(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["french horn", "dog", "car"], favourite="french horn")
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy"]}
    result = cli("train", recipe_file(forget={"concepts": ["French horn"]}, evaluation=asked))
    assert result.status == 0, result.err
    assert holds(tmp_path / "run")[0] is False
    assert "erased     NO           French horn is still seen in 2 of 2 pictures" in result.out
    page = (tmp_path / "run/report.html").read_text()
    assert "<title>Erasing French horn: failed</title>" in page and "no longer draws" not in page


def test_labels_are_mapped(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    labels = ["tabby cat", "Egyptian cat", "hound", "car"]
    judge = tiny_classifier(tmp_path / "judge", labels, favourite="Egyptian cat")
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy"]}
    mapped = asked | {"judge_labels": {"cat": ["Tabby Cat", "egyptian_cat"], "dog": ["hound"]}}
    result = cli("train", recipe_file(evaluation=mapped))
    assert result.status == 0, result.err
    accuracy = found(tmp_path / "run")["metrics"]["accuracy"]
    assert accuracy["unlearning_accuracy"] == 0.0 and accuracy["per_concept"]["cat"]["became"] == {"cat": 1.0}
    assert accuracy["counted"]["retain"] == 2, "a hound is a dog"
    wrong = mapped | {"judge_labels": {"cat": ["tabby"], "dgo": ["hound"]}}
    refused(cli("train", recipe_file(evaluation=wrong)), "evaluation.judge_labels = 'dgo'", "Did you mean 'dog'?")
    wrong = mapped | {"judge_labels": {"cat": ["tabby"]}}
    refused(
        cli("train", recipe_file(evaluation=wrong), "--overwrite"),
        f"evaluation.judge_labels.cat = 'tabby': is no label of transformers:{judge}. Nearest: 'tabby cat'.",
    )
    empty = mapped | {"judge_labels": {"cat": []}}
    refused(cli("train", recipe_file(evaluation=empty)), "evaluation.judge_labels.cat = []: holds no label")


def test_another_resolution_than_the_bases_own(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy"]}
    result = cli("train", recipe_file(evaluation=asked, sampling={"resolution": 64}))
    assert result.status == 0, result.err
    assert "warning: sampling.resolution = 64: the base draws at 32 px" in result.err
    assert result.err.index("sampling.resolution") < result.err.index("forget set"), "before the sets are drawn"
    assert holds(tmp_path / "run")[0] is None
    assert "Drawn at 64 px; the base's own size is 32 px." in result.out


def test_matching() -> None:
    given = {"clock": ["analog clock", "wall clock"]}
    labels = ["Analog Clock", "wall_clock", "Cat"]
    assert labels_of(["clock", "cat", "dog"], given, labels) == {
        "clock": {"analog clock", "wall clock"},
        "cat": {"cat"},
    }
    assert complaints("x", ["clock", "cat"], given, labels) == []
    (problem,) = complaints("x", ["dog"], given, labels)
    assert "has no label for 'dog'" in str(problem)
    assert nearest_labels("clock", ["wall clock", "lock", "dog"]).startswith("Nearest: 'wall clock', 'lock'")
