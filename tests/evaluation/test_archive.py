"""Evaluations stand side by side: nothing that was measured is lost, mixed up, or written where nobody asked for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli, RecipeFile, Result
from refusals import refused
from tiny import tiny_classifier

from erasediff_lora.evaluation.archive import measures_no_less


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """A judge who sees dogs everywhere, and an attack."""
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car", "fish"], favourite="dog")
    return {
        "judge": f"transformers:{judge}",
        "distances": {"features": "judge"},
        "metrics": ["accuracy"],
        "attacks": ["paraphrases"],
        "paraphrases": {"names": {"cat": ["kitten"]}, "samples": 2},
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def written(result: Result) -> Path:
    """The evaluation.json that a command names."""
    (file,) = re.findall(r"^numbers +(.+)$", result.out, re.M)
    return Path(file)


def test_a_quick_look_does_not_take_the_place_of_a_full_report(
    asked: dict[str, Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    run = tmp_path / "run"
    before = contents(run)
    result = cli("evaluate", run, "--name", "glance", "--evaluation.attacks", "[]")
    assert result.status == 0, result.err
    assert f"unchanged  {run / 'evaluation.json'}, which measures more" in result.out
    after = contents(run)
    assert {name: after[name] for name in before} == before, "all that was there"
    entry = written(result).parent
    assert entry.parent == run / "evaluations" and re.fullmatch(r"\d{4}-\d\d-\d\d-\d{6}-glance", entry.name)
    made = json.loads((entry / "evaluation.json").read_text())
    assert made["attacks"] == {} and made["name"] == entry.name
    assert (entry / "report.html").is_file() and all((entry / strip["file"]).is_file() for strip in made["strips"])

    richer = cli("evaluate", run, "--evaluation.metrics", "[accuracy, drift]")
    assert richer.status == 0, richer.err
    assert written(richer) == run / "evaluation.json"
    assert {*json.loads((run / "evaluation.json").read_text())["metrics"]} == {"accuracy", "drift"}
    assert len(list((run / "evaluations").iterdir())) == 3
    refused(cli("evaluate", run, "--name", "../out"), "--name = '../out': is no name for a folder")


def test_of_an_earlier_version_the_evaluation_is_kept_beside(
    asked: dict[str, Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    file = tmp_path / "run/evaluation.json"
    earlier = {name: value for name, value in json.loads(file.read_text()).items() if name != "name"}
    file.write_text(json.dumps(earlier))
    assert cli("evaluate", tmp_path / "run").status == 0
    (kept,) = (tmp_path / "run").glob("evaluations/*-earlier/evaluation.json")
    assert json.loads(kept.read_text()) == earlier and (kept.parent / "report.html").is_file()


def test_an_unreachable_judge_leaves_the_report_as_it_was(
    asked: dict[str, Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    before = contents(tmp_path / "run")
    refused(
        cli("evaluate", tmp_path / "run", "--evaluation.judge", "clip:/nowhere"),
        "'clip:/nowhere': there is no such file",
    )
    assert contents(tmp_path / "run") == before


def test_a_failure_half_way_leaves_nothing(
    asked: dict[str, Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    before = contents(tmp_path / "run")

    def fail(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("erasediff_lora.evaluation.evaluate.write_report", fail)
    assert cli("evaluate", tmp_path / "run").status == 130
    assert contents(tmp_path / "run") == before


def test_a_recipe_of_another_erasure_is_asked_about(
    asked: dict[str, Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    run = tmp_path / "run"
    before = contents(run)
    three = recipe_file(forget={"concepts": ["cat", "fish"]}, evaluation=asked)
    clock = "--forget.concepts", "[fish]", "--evaluation.paraphrases", "{}"
    for command in ((run, "--recipe", three), (run, *clock), (run / "erase-cat.safetensors", "--recipe", three)):
        refused(cli("evaluate", *command), "forget.concepts = [", "is not what", "erases, which is cat.", "add --force")
    assert contents(run) == before
    forced = cli("evaluate", run, "--recipe", three, "--force")
    assert forced.status == 0, forced.err
    assert json.loads(written(forced).read_text())["concepts"] == ["cat", "fish"]


def test_nothing_is_written_into_a_folder_that_is_no_run(
    asked: dict[str, Any], recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file(evaluation=asked)
    assert cli("train", file).status == 0
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "run/pytorch_lora_weights.safetensors").rename(model / "pytorch_lora_weights.safetensors")
    before = contents(model)
    assert cli("evaluate", model, "--recipe", file).status == 0
    assert contents(model) == before and (tmp_path / "model-evaluation/report.html").is_file()
    assert cli("evaluate", model, "--recipe", file, "--output", tmp_path / "new").status == 0
    assert contents(model) == before and (tmp_path / "new/report.html").is_file()


def test_a_place_that_cannot_be_written_is_noticed_before_the_first_picture(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", recipe_file()).status == 0
    (tmp_path / "file").write_text("in the way")
    place, cache = tmp_path / "file/out", tmp_path / "other"
    result = cli("evaluate", tmp_path / "run", "--output", place, "--cache", cache)
    refused(result, f"output = '{place}", "cannot be written: Not a directory")
    assert not cache.exists(), "nothing was drawn"


def test_what_may_take_the_place_of_what() -> None:
    old = {
        "adapter": {"sha256": "a"}, "concepts": ["cat"], "metrics": {"accuracy": {}}, "attacks": {"inversion": {}},
        "forget_samples": 200, "retain_samples": 200,
    }  # fmt: skip
    assert measures_no_less(old, old) and measures_no_less(old | {"attacks": {"inversion": {}, "x": {}}}, old)
    poorer: dict[str, object] = {
        "attacks": {},
        "metrics": {},
        "forget_samples": 120,
        "retain_samples": 9,
        "concepts": [],
    }
    for name, value in poorer.items():
        assert not measures_no_less(old | {name: value}, old)
    assert measures_no_less(old | {"adapter": {"sha256": "b"}, "attacks": {}}, old), "of another adapter"
    assert measures_no_less(old, {"adapter": 3}), "not ours"
