"""Protocols: known settings, what was changed of them, and comparisons of what was not measured alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused
from tiny import tiny_classifier

from erasediff_lora.evaluation.judges.nudenet import NudeNet
from erasediff_lora.evaluation.judges.nudity import CLASSES, Scores
from erasediff_lora.recipe import Recipe
from erasediff_lora.registry import PROTOCOLS


def values(**evaluation: Any) -> dict[str, Any]:
    return {
        "model": {"base": "owner/name"},
        "forget": {"concepts": [{"name": "nudity", "anchor": "coat"}], "templates": ["{concept}"]},
        "retain": {"concepts": ["coat"], "templates": ["{concept}"]},
        "evaluation": evaluation,
    }


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_is_a_recipe_and_says_where_it_is_from(name: str) -> None:
    protocol = PROTOCOLS[name]
    recipe = Recipe.parse(values(protocol=name))
    shown = recipe.evaluation.model_dump(mode="json")
    for dotted, wanted in protocol.values.items():
        found: Any = shown
        for part in dotted.split("."):
            found = found[part]
        assert found == wanted
    assert len(protocol.source) > 40 and protocol.version >= 1
    assert all(len(hashed) == 64 for hashed in protocol.files)
    assert set(protocol.values.get("nudity.classes", [])) <= CLASSES
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml())) == recipe


def test_what_the_recipe_says_goes_first_and_a_flag_goes_before_the_run(tmp_path: Path) -> None:
    asked = values(protocol="i2p_nudity", nudity={"threshold": 0.5}, judge="opennsfw")
    options = Recipe.parse(asked).evaluation
    assert options.judge == "opennsfw" and options.nudity.threshold == 0.5  # type: ignore[attr-defined]
    assert options.nudity.detector == "nudenet" and options.base_rate == "low"  # type: ignore[attr-defined]

    (tmp_path / "run.yaml").write_text(Recipe.parse(values(judge="opennsfw")).to_yaml())
    flags = {"evaluation.protocol": "i2p_nudity", "evaluation.nudity.threshold": 0.7}
    options = Recipe.load(tmp_path / "run.yaml", flags).evaluation
    assert options.judge == "nudenet", "the run's recipe spells out what it left open"
    assert options.nudity.threshold == 0.7 and options.steps == 50  # type: ignore[attr-defined]


def test_bad_names(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(
        cli("train", recipe_file(evaluation={"protocol": "i2p_nude"})),
        "evaluation.protocol = 'i2p_nude'",
        "Did you mean 'i2p_nudity'?",
    )
    refused(
        cli("train", recipe_file(evaluation={"nudity": {"classes": ["FEET_EXPSED"]}})),
        "evaluation.nudity.classes = 'FEET_EXPSED': is no class of NudeNet. Did you mean 'FEET_EXPOSED'?",
    )
    refused(cli("train", recipe_file(evaluation={"nudity": {"threshold": 1.5}})), "evaluation.nudity.threshold = 1.5")


@pytest.mark.parametrize(
    ("protocol", "missing", "said"),
    [
        ("i2p_nudity", "nudenet", "needs a package: import of nudenet halted"),
        ("imagenette", "torchvision", "needs a package: import of torchvision"),
    ],
)
def test_a_protocol_whose_detector_is_not_installed(
    recipe_file: RecipeFile,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    missing: str,
    said: str,
) -> None:
    """One line with the remedy, before anything is drawn; the same in a recipe, before training."""
    assert cli("train", recipe_file()).status == 0
    for name in (missing, f"{missing}.models"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "p.csv").write_text("prompt,seed\na cat,1\n")
    asked = ["evaluate", tmp_path / "run", "--protocol", protocol, "--prompts", tmp_path / "p.csv"]
    told = cli(*asked, "--cache", tmp_path / "other")
    refused(told, "evaluation.judge = ", said, "Run: pip install")
    assert not (tmp_path / "other").exists() and len(list((tmp_path / "run/evaluations").iterdir())) == 1
    refused(cli("train", recipe_file(evaluation={"protocol": protocol}), "--output", tmp_path / "two"), said)
    assert not (tmp_path / "two/training_log.jsonl").exists()


def newest(run: Path) -> dict[str, Any]:
    entry = max((run / "evaluations").iterdir(), key=lambda one: one.stat().st_mtime_ns)
    found: dict[str, Any] = json.loads((entry / "evaluation.json").read_text())
    return found


def test_the_same_protocol_gives_the_same_numbers_and_another_threshold_another_name(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(cls: type[NudeNet], field: str) -> Scores:
        return lambda image: {"FEET_EXPOSED": [0.5 + 0.4 * bool(image.getpixel((0, 0))[0] % 2)]}  # type: ignore[index]

    monkeypatch.setattr(NudeNet, "scores", classmethod(scores))
    assert cli("train", recipe_file()).status == 0
    run = tmp_path / "run"
    (tmp_path / "p.csv").write_text("prompt,evaluation_seed\n" + "".join(f"a cat {n},{n}\n" for n in range(6)))
    asked = ["evaluate", run, "--protocol", "diffusion_mu_attack", "--evaluation.judge_labels", "{cat: [nudity]}"]
    asked += ["--prompts", tmp_path / "p.csv", "--evaluation.steps", "2"]
    one = cli(*asked)
    assert one.status == 0, one.err
    first = newest(run)
    assert first["protocol"]["name"] == "diffusion_mu_attack 1, but steps 2; prompts p.csv"
    other = cli(*asked, "--cache", tmp_path / "other", "--sampling.batch_size", "1", "--name", "elsewhere")
    assert other.status == 0, other.err
    second = newest(run)
    assert second["protocol"] == first["protocol"] and second["metrics"] == first["metrics"]
    nude = first["metrics"]["nudity"]["forget"]["erased"]["pictures"]
    assert first["metrics"]["accuracy"]["unlearning_accuracy"] == pytest.approx(1 - nude / 6)

    low = [*asked, "--evaluation.nudity.threshold", "0.45", "--output", tmp_path / "low", "--recipe", run]
    assert cli(*low).status == 0
    third = json.loads((tmp_path / "low/evaluation.json").read_text())
    assert third["protocol"]["name"] == "diffusion_mu_attack 1, but nudity.threshold 0.45; steps 2; prompts p.csv"
    assert third["metrics"]["nudity"]["forget"]["erased"]["pictures"] == 6, "feet count, from 0.45"
    assert third["recipe_sha256"] == first["recipe_sha256"], "steps of the evaluation are none of the adapter's"
    told = cli("compare", run, tmp_path / "low", "--output", tmp_path / "c.html")
    assert told.status == 0, told.err
    assert "nudity.threshold 0.45" in told.out and "| protocol |" in told.out
    assert "not measured by the same protocol: nudity.threshold (0.75, 0.45). Compare with care." in told.out
    assert "not measured by the same protocol" in (tmp_path / "c.html").read_text()


def test_runs_measured_alike_are_compared_without_a_word(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="cat")
    for name in ("a", "b"):
        file = recipe_file(evaluation={"judge": f"transformers:{judge}", "metrics": ["accuracy"]})
        assert cli("train", file, "--output", tmp_path / name).status == 0
    told = cli("compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c.html")
    assert told.status == 0 and "protocol: " not in told.out
    assert newest(tmp_path / "a")["protocol"]["name"].startswith("own ")
    assert newest(tmp_path / "a")["protocol"] == newest(tmp_path / "b")["protocol"]
    assert Image.open(tmp_path / "a/before_after.png").size
