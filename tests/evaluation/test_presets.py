"""The presets --quick and --full, and the names that a recipe may use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli, RecipeFile, Result
from refusals import refused
from tiny import tiny_classifier

from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.recipe import Recipe
from erasediff_lora.recipe.evaluation import evaluation_table
from erasediff_lora.registry import ATTACKS, METRICS

Evaluation = evaluation_table()


def numbers_of(result: Result) -> dict[str, Any]:
    """The evaluation that a command says it has written."""
    (file,) = re.findall(r"^numbers +(.+)$", result.out, re.M)
    found: dict[str, Any] = json.loads(Path(file).read_text())
    return found


def test_full_is_all_that_the_recipe_has_the_means_for() -> None:
    bare = Evaluation().full()
    assert bare["metrics"] == [
        *("accuracy", "distances", "drift", "negative_prompt", "quality", "safe_latent_diffusion", "strength_sweep")
    ]
    assert bare["attacks"] == [
        *("inversion", "output_inversion", "adversarial_prompt", "ring_a_bell", "p4d", "guidance_attack"),
        *("latent_start", "picture_start", "null_text", "linear_probe", "relearning"),
    ]
    means = {
        "clip_score": {"weights": "x"},
        "nudity": {"detector": "nudenet"},
        "paraphrases": {"names": {"cat": ["kitty"]}},
    }
    rich = Evaluation(**means).full()
    assert set(rich["metrics"]) == METRICS.keys()
    assert set(rich["attacks"]) == ATTACKS.keys() - {"listed_prompts", "other_words"}


def test_old_names_are_read(recipe_file: RecipeFile, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = {"clip": "x", "nudity_detector": "nudenet", "strengths": [0.5], "sweep_samples": 7, "features": "judge",
           "real_images": "photos", "paraphrases": {"cat": ["kitty"]}, "paraphrase_samples": 3}  # fmt: skip
    new = {"clip_score": {"weights": "x"}, "nudity": {"detector": "nudenet"},
           "strength_sweep": {"strengths": [0.5], "samples": 7},
           "distances": {"features": "judge", "real_images": "photos"},
           "paraphrases": {"names": {"cat": ["kitty"]}, "samples": 3}}  # fmt: skip
    assert Recipe.load(recipe_file(evaluation=new)) == Recipe.load(recipe_file(evaluation=old))
    assert "evaluation.clip is now called evaluation.clip_score.weights" in caplog.text
    assert "evaluation.paraphrases.CONCEPT is now called" in caplog.text


def test_quick_draws_fewer_and_never_more() -> None:
    assert Evaluation().quick(30) == {
        "metrics": ["accuracy", "distances", "drift"], "attacks": [], "forget_samples": 120, "retain_samples": 200,
        "first_of": [200, 200],
    }  # fmt: skip
    assert Evaluation(forget_samples=7).quick(30)["forget_samples"] == 7
    assert Evaluation(retain_samples=216).quick(30)["retain_samples"] == 210, "whole batches, as they are kept"


def test_a_quick_look_draws_nothing_that_the_runs_own_evaluation_has_drawn(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    asked = {
        "judge": f"transformers:{judge}",
        "distances": {"features": "judge"},
        "metrics": ["accuracy", "distances", "drift"],
        "attacks": ["paraphrases"],
        "paraphrases": {"names": {"cat": ["kitten"]}, "samples": 2},
        "forget_samples": 122,
        "retain_samples": 203,
    }
    file = recipe_file(evaluation=asked, sampling={"steps": 1, "batch_size": 40})
    assert cli("train", file).status == 0
    run = tmp_path / "run"
    whole = json.loads((run / "evaluation.json").read_text())
    monkeypatch.setattr(StableDiffusion, "generate", lambda *arguments, **options: pytest.fail("it is drawn already"))
    result = cli("evaluate", run, "--quick")
    assert result.status == 0, result.err
    quick = numbers_of(result)
    assert (quick["forget_samples"], quick["retain_samples"]) == (120, 200)
    assert quick["attacks"] == whole["attacks"]
    for kind, count in (("forget", 120), ("retain", 200)):
        first, last = quick["seeds"][kind]
        assert first == whole["seeds"][kind][0] and last - first == count - 1
    assert quick["protocol"]["settings"]["first_of"] == [122, 203]
    assert quick["protocol"]["name"] != whole["protocol"]["name"]


def test_pictures_that_are_the_first_of_fewer_are_refused(recipe_file: RecipeFile, cli: Cli) -> None:
    told = cli("prepare", recipe_file(evaluation={"forget_samples": 9, "first_of": [8, 400]}))
    refused(told, "evaluation.first_of = [8, 400]: names fewer pictures than are drawn: 8 < 9.", "omit it")


def test_flags_win_over_presets_and_both_over_the_recipe(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    file = recipe_file(evaluation={"judge": f"transformers:{judge}", "distances": {"features": "judge"}})
    assert cli("train", file).status == 0
    run = tmp_path / "run"

    def made(*flags: object) -> dict[str, Any]:
        result = cli("evaluate", run, *flags)
        assert result.status == 0, result.err
        return numbers_of(result)

    assert made()["metrics"] == {}
    assert list(made("--quick")["metrics"]) == ["accuracy", "distances", "drift"]
    result = made("--full", "--evaluation.metrics", "[accuracy]", "--evaluation.attacks=[]")
    assert list(result["metrics"]) == ["accuracy"] and result["attacks"] == {}
    assert result["recipe"]["evaluation"]["metrics"] == ["accuracy"], "as evaluated, not as trained"
    refused(cli("evaluate", run, "--fulll"), "'--fulll': is no field of the recipe")


def test_numbers_do_not_depend_on_what_else_is_measured(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"])
    asked = {
        "judge": f"transformers:{judge}",
        "distances": {"features": "judge"},
        "metrics": ["accuracy", "distances", "drift"],
    }
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    run = tmp_path / "run"
    together = json.loads((run / "evaluation.json").read_text())["metrics"]
    for name in asked["metrics"]:
        result = cli("evaluate", run, "--evaluation.metrics", f"[{name}]", "--cache", tmp_path / name)
        assert result.status == 0, result.err
        assert numbers_of(result)["metrics"] == {name: together[name]}
