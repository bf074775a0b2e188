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
from erasediff_lora.storage.files import sha256


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
    run: Path,
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    missing: str,
    said: str,
) -> None:
    """One line with the remedy, before anything is drawn; the same in a recipe, before training."""
    before = len(list((run / "evaluations").iterdir()))
    for name in (missing, f"{missing}.models"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "p.csv").write_text("prompt,seed\na cat,1\n")
    asked = ["evaluate", run, "--protocol", protocol, "--prompts", tmp_path / "p.csv"]
    told = cli(*asked, "--cache", tmp_path / "other")
    refused(told, "evaluation.judge = ", said, "Run: pip install")
    assert not (tmp_path / "other").exists() and len(list((run / "evaluations").iterdir())) == before
    refused(cli("train", recipe_file(evaluation={"protocol": protocol}), "--output", tmp_path / "two"), said)
    assert not (tmp_path / "two/training_log.jsonl").exists()


def test_what_a_protocol_leaves_to_the_recipe(run: Path, cli: Cli, tmp_path: Path) -> None:
    """By what it measures is asked for before anything is drawn."""
    for protocol, field in (("artists", "clip_score.weights"), ("unlearncanvas", "judge"), ("hub", "judge")):
        told = cli("evaluate", run, "--protocol", protocol, "--evaluation.judge", "null", "--cache", tmp_path / "new")
        refused(told, f"evaluation.{field} = None: is left open, and {protocol} measures")
    assert not (tmp_path / "new").exists()


def newest(run: Path) -> dict[str, Any]:
    entry = max((run / "evaluations").iterdir(), key=lambda one: one.stat().st_mtime_ns)
    found: dict[str, Any] = json.loads((entry / "evaluation.json").read_text())
    return found


def test_the_same_protocol_gives_the_same_numbers_and_another_threshold_another_name(
    run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scores(cls: type[NudeNet], field: str) -> Scores:
        return lambda image: {"FEET_EXPOSED": [0.5 + 0.4 * bool(image.getpixel((0, 0))[0] % 2)]}  # type: ignore[index]

    monkeypatch.setattr(NudeNet, "scores", classmethod(scores))
    file = tmp_path / "p.csv"
    file.write_text("prompt,evaluation_seed\n" + "".join(f"a cat {n},{n}\n" for n in range(6)))
    known = sha256(file.read_bytes())
    monkeypatch.setitem(PROTOCOLS["diffusion_mu_attack"].files, known, "p.csv")
    asked = ["evaluate", run, "--protocol", "diffusion_mu_attack", "--evaluation.judge_labels", "{cat: [nudity]}"]
    asked += ["--evaluation.steps", "2", "--evaluation.retain_samples", "4"]
    one = cli(*asked, "--prompts", file)
    assert one.status == 0, one.err
    first = newest(run)
    assert first["protocol"]["name"] == "diffusion_mu_attack 2, but steps 2"
    assert first["metrics"]["nudity"]["forget"]["erased"]["pictures"] == 6, "feet count, from 0.45"
    elsewhere = ("--cache", tmp_path / "other", "--sampling.batch_size", "1", "--name", "elsewhere")
    other = cli(*asked, "--prompts", file, *elsewhere)
    assert other.status == 0, other.err
    second = newest(run)
    assert second["protocol"] == first["protocol"] and second["metrics"] == first["metrics"]

    def changed(*flags: object) -> tuple[dict[str, Any], str]:
        """Of an evaluation that is asked for otherwise: its result, and what a comparison with the first one says."""
        there = ("--output", tmp_path / "changed", "--recipe", run)
        told = cli(*asked, *flags, *there)
        assert told.status == 0, told.err
        found = json.loads((tmp_path / "changed/evaluation.json").read_text())
        told = cli("compare", run, tmp_path / "changed", "--output", tmp_path / "c.html", "--overwrite")
        assert told.status == 0, told.err
        return found, told.out

    third, told = changed("--prompts", file, "--evaluation.nudity.threshold", "0.75")
    assert third["protocol"]["name"] == "diffusion_mu_attack 2, but nudity.threshold 0.75; steps 2"
    nude = third["metrics"]["nudity"]["forget"]["erased"]["pictures"]
    assert third["metrics"]["accuracy"]["unlearning_accuracy"] == pytest.approx(1 - nude / 6)
    assert third["recipe_sha256"] == first["recipe_sha256"], "steps of the evaluation are none of the adapter's"
    assert "not measured by the same protocol" in (tmp_path / "c.html").read_text()
    assert "nudity.threshold 0.75" in told and "| protocol |" in told
    assert "not measured by the same protocol: nudity.threshold (0.45, 0.75). Compare with care." in told

    third, told = changed("--evaluation.prompts", json.dumps([{"file": str(file), "honour": ["guidance"]}]))
    assert third["protocol"]["name"] == "diffusion_mu_attack 2, but steps 2; honour ['guidance'] of p.csv"
    assert "not measured by the same protocol: prompts. Compare with care." in told
    monkeypatch.delitem(PROTOCOLS["diffusion_mu_attack"].files, known)
    third, _ = changed("--prompts", file)
    assert third["protocol"]["name"] == "diffusion_mu_attack 2, but steps 2; prompts p.csv of 6 rows"


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

    other = tiny_classifier(tmp_path / "elsewhere/judge", ["cat", "dog", "car"], favourite="dog")
    assert cli("evaluate", tmp_path / "b", "--evaluation.judge", f"transformers:{other}").status == 0
    told = cli("compare", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "c.html", "--overwrite")
    assert "not measured by the same protocol: files of judge. Compare with care." in told.out, "of the same name"
