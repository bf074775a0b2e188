"""Evaluations that cannot be made, in whole or in part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused
from tiny import tiny_classifier, tiny_pipeline


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge": "clop:/x"}, ["evaluation.judge = 'clop:/x': is no judge", "Did you mean 'clip'?"]),
        ({"metrics": ["acuracy"]}, ["evaluation.metrics.0 = 'acuracy'", "Did you mean 'accuracy'?"]),
        ({"attacks": ["inversoin"]}, ["evaluation.attacks.0 = 'inversoin'", "Did you mean 'inversion'?"]),
        (
            {"paraphrases": {"names": {"cta": ["kitty"]}}},
            ["paraphrases.names = 'cta'", "Did you mean 'cat'?"],
        ),
        ({"paraphrases": {"names": {"cat": []}}}, ["evaluation.paraphrases.names.cat = []: holds no name"]),
        ({"paraphrases": {"names": {"cat": [" "]}}}, ["evaluation.paraphrases.names.cat = [' ']: holds no name"]),
        ({"paraphrases": {"name": {}}}, ["evaluation.paraphrases.name = {}: is unknown", "Did you mean 'names'?"]),
        ({"strength_sweep": {"strengths": [-1]}}, ["evaluation.strength_sweep.strengths = -1.0: must be above 0"]),
        ({"nudity": {"detector": "nudent"}}, ["evaluation.nudity.detector = 'nudent'", "Did you mean 'nudenet'?"]),
        ({"latent_start": {"strengths": [1.5]}}, ["evaluation.latent_start.strengths = 1.5", "at most 1"]),
        ({"relearning": {"steps": [0]}}, ["evaluation.relearning.steps = 0.0: must be above 0"]),
        ({"inversion": {"step": 5}}, ["evaluation.inversion.step = 5: is unknown", "Did you mean 'steps'?"]),
    ],
)
def test_a_recipe_that_asks_for_nonsense(recipe_file: RecipeFile, cli: Cli, changes: Any, words: Any) -> None:
    refused(cli("train", recipe_file(evaluation=changes)), *words)


def test_choosing_the_best_needs_a_judge(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(
        cli("train", recipe_file(training={"evaluate_every": 2})),
        "training.evaluate_every = 2: chooses by what a judge sees, and evaluation.judge names none",
    )


def test_an_adapter_needs_a_recipe(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file()).status == 0
    adapter = tmp_path / "run/erase-cat.safetensors"
    refused(cli("evaluate", adapter), "--recipe = None: is needed", "is no run", "Add --recipe RECIPE")
    refused(cli("evaluate", tmp_path / "nothing.safetensors"), "nothing.safetensors is not there")
    refused(cli("evaluate", adapter, "--recipe", tmp_path / "no.yaml"), "there is no such file")
    assert cli("evaluate", adapter, "--recipe", tmp_path / "recipe.yaml").status == 0
    made = json.loads((tmp_path / "run/erase-cat-evaluation/evaluation.json").read_text())
    assert made["adapter"]["file"] == "erase-cat.safetensors"
    assert (tmp_path / "run/erase-cat-evaluation/report.html").is_file()


def test_an_untrained_run_and_a_damaged_adapter(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    refused(cli("evaluate", recipe_file()), "holds no adapter. Train first")
    assert cli("train", recipe_file()).status == 0
    file = tmp_path / "run/pytorch_lora_weights.safetensors"
    before = (tmp_path / "run/evaluation.json").read_bytes()
    file.write_bytes(file.read_bytes()[:100])
    refused(cli("evaluate", tmp_path / "run"), str(file))
    assert (tmp_path / "run/evaluation.json").read_bytes() == before


def test_an_adapter_that_does_not_fit_the_base(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file()).status == 0
    other = tiny_pipeline()
    other.unet = type(other.unet).from_config(dict(other.unet.config) | {"block_out_channels": (8, 16)})
    other.save_pretrained(tmp_path / "narrow")
    refused(
        cli("evaluate", tmp_path / "run", "--model.base", tmp_path / "narrow", "--output", tmp_path / "out"),
        "does not fit",
        "narrow",
    )
    assert not (tmp_path / "out/evaluation.json").exists()


def test_what_the_recipe_names_and_is_not_there_is_told_before_training(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    asked = {
        "judge": "transformers:/nowhere/judge",
        "metrics": ["nudity", "clip_score", "distances"],
        "nudity": {"detector": "nudenet"},
        "clip_score": {"weights": "/nowhere/clip"},
        "distances": {"features": "inception:/nowhere"},
    }
    refused(
        cli("train", recipe_file(evaluation=asked)),
        "4 problems",
        "evaluation.judge = 'transformers:/nowhere/judge': there is no such file or folder",
        "evaluation.nudity.detector = 'nudenet': needs a package",
        "pip install 'erasediff-lora[nudenet]'",
        "evaluation.clip_score.weights = '/nowhere/clip': there is no such file or folder",
        "evaluation.distances.features = 'inception:/nowhere'",
    )
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists(), "nothing was drawn"


def test_metrics_that_lack_something_else_are_left_out(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    asked = {"metrics": ["accuracy", "strength_sweep"], "attacks": ["inversion", "paraphrases"]}
    result = cli("train", recipe_file(evaluation=asked))
    assert result.status == 0, result.err
    made = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert made["metrics"] == {} == made["attacks"]
    assert set(made["refused"]) == {*asked["metrics"], *asked["attacks"]}
    assert "accuracy needs a judge" in made["refused"]["accuracy"]
    assert "inversion is left out" in result.err and "Traceback" not in result.err
    page = (tmp_path / "run/report.html").read_text()
    assert page.index("Left out") < page.rindex("Pictures that ask for"), "beside the verdict"


def test_one_retained_picture_is_too_few_to_compare(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    asked = {"judge": "demo", "judge_labels": {"dog": ["car"]}, "retain_samples": 1, "metrics": ["distances"]}
    refused(
        cli("train", recipe_file(evaluation=asked)),
        "evaluation.retain_samples = 1: leaves distances with nothing to compare",
        "Draw more, or take distances out",
    )
    assert not (tmp_path / "run").exists()


def test_folders_of_real_pictures(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy", "distances"], "retain_samples": 4}
    for folder, what in (("empty", "holds 0 picture(s)"), ("nowhere", "is no folder")):
        changes = asked | {"distances": {"features": "judge", "real_images": str(tmp_path / folder)}}
        refused(cli("train", recipe_file(evaluation=changes)), "evaluation.distances.real_images", what)
    assert not (tmp_path / "run").exists()


def test_a_floor_that_is_not_there(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    refused(
        cli("train", recipe_file(evaluation={"never_learned": str(tmp_path / "no")})),
        "evaluation.never_learned",
        "there is no such folder",
    )


def test_the_base_never_draws_the_concept(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy"], "attacks": ["latent_start"]}
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    made = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert "sees the concept in none of the base's pictures" in made["refused"]["latent_start"]
