"""Attacks, run through the command line on a tiny base, with a tiny classifier as judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import Cli, RecipeFile
from tiny import tiny_classifier, tiny_pipeline

from erasediff_lora.evaluation import evidence
from erasediff_lora.evaluation.attacks import inversion
from erasediff_lora.evaluation.attacks.adversarial_prompt import onto_simplex
from erasediff_lora.evaluation.attacks.latent_start import drawn_on
from erasediff_lora.evaluation.shares import interval
from erasediff_lora.memory.plan import plan
from erasediff_lora.recipe import Recipe, Sampling

SEARCHED = ["inversion", "adversarial_prompt", "ring_a_bell", "p4d"]
ATTACKS = [
    "paraphrases",
    *SEARCHED,
    "output_inversion",
    "guidance_attack",
    "latent_start",
    "picture_start",
    "null_text",
    "relearning",
]


def evaluation(judge: Path, **changes: Any) -> dict[str, Any]:
    search = {"steps": 3, "restarts": 2, "batch_size": 2, "samples": 2}
    return {
        "judge": f"transformers:{judge}",
        "distances": {"features": f"clip:{judge.parent / 'clip'}"},
        "metrics": ["accuracy"],
        "attacks": ATTACKS,
        "paraphrases": {"names": {"cat": ["kitten", "tabby"]}, "samples": 2},
        "inversion": search | {"vectors": 2},
        "adversarial_prompt": search | {"tokens": 3},
        "ring_a_bell": {"steps": 2, "restarts": 2, "samples": 2, "tokens": 3, "exchanges": 4},
        "p4d": search | {"tokens": 3},
        "output_inversion": search,
        "guidance_attack": {"scales": [1.0, 9.0], "samples": 2},
        "latent_start": {"strengths": [0.2, 0.5, 1.0], "samples": 2},
        "picture_start": {"strengths": [0.5], "samples": 2},
        "null_text": {"steps": 3, "samples": 2},
        "relearning": {"images": 2, "steps": [2, 4], "batch_size": 2, "samples": 2, "learning_rate": 0.01},
    } | changes


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sees a cat in everything."""
    return tiny_classifier(tmp_path_factory.mktemp("judge") / "always_cat", ["cat", "dog", "car"], favourite="cat")


def numbers(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return {name: value for name, value in found.items() if name not in ("seconds", "name")}


def test_every_attack_runs_on_every_model_and_repeats_itself(
    recipe_file: RecipeFile, tiny_base: Path, judge: Path, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file(evaluation=evaluation(judge, never_learned=str(tiny_base)))
    assert cli("train", file, "--training.learning_rate", "0.05").status == 0
    run = tmp_path / "run"
    first = numbers(run)
    assert list(first["attacks"]) == ATTACKS and not first["refused"]
    for name, attack in first["attacks"].items():
        assert list(attack["models"]) == ["erased", "base", "never learned"]
        assert all(model["success"] == 1.0 for model in attack["models"].values()), "the judge sees cats everywhere"
        for model in attack["models"].values():
            own = model["per_concept"]["cat"]
            assert own["success"] == 1.0 and own["tries"] == model["tries"] and own["pictures"] == model["pictures"]
        assert attack["budget"] and attack["title"]
        assert list(run.glob(f"pictures/{name}-strip-*.webp"))
    attacks = first["attacks"]
    assert set(attacks["inversion"]["models"]["erased"]["tries"]) == {"restart 1", "restart 2"}
    assert set(attacks["latent_start"]["models"]["base"]["tries"]) == {"0.2", "0.5", "1"}
    assert attacks["relearning"]["models"]["erased"]["steps"] == 0
    assert set(attacks["relearning"]["models"]["erased"]["tries"]) == {"0", "2", "4"}
    assert set(attacks["paraphrases"]["models"]["erased"]["by_name"]) == {"kitten", "tabby"}
    assert set(attacks["guidance_attack"]["models"]["base"]["tries"]) == {"1", "9"}, "the concept has no anchor"
    prompts = {model: found["prompts"] for model, found in attacks["ring_a_bell"]["models"].items()}
    assert prompts["base"] == prompts["erased"], "one text encoder, one search"
    losses = {model: found["loss"] for model, found in attacks["inversion"]["models"].items()}
    assert losses["base"] == losses["never learned"] != losses["erased"], "the same weights, found by the same search"
    prefixes = attacks["adversarial_prompt"]["models"]
    assert prefixes["base"]["prefixes"] == prefixes["never learned"]["prefixes"]

    again = cli("evaluate", run, "--cache", tmp_path / "other_cache")
    assert again.status == 0, again.err
    assert numbers(run) == first, "from nothing"
    cached = cli("evaluate", run)
    assert cached.status == 0 and numbers(run) == first, "from the cache"
    assert "inversion: from the cache" in cached.err


def test_latent_start_has_as_many_pictures_as_were_asked_for(
    recipe_file: RecipeFile, judge: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "BASE_FORGET_SAMPLES", 1)
    latent_start = {"strengths": [0.5], "samples": 5}
    asked = evaluation(judge, attacks=["latent_start"], forget_samples=6, latent_start=latent_start)
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    found = numbers(tmp_path / "run")
    assert found["attacks"]["latent_start"]["models"]["erased"]["pictures"] == 5
    assert found["forget_samples_base"] == 5


@pytest.mark.parametrize("strength", [0.01, 0.3, 1 / 3, 0.4, 0.7, 1.0])
def test_at_least_one_step_is_left_of_a_start_with_little_noise(strength: float) -> None:
    for steps in (1, 2, 3, 4, 30, 200):
        drawn = drawn_on(Sampling(steps=steps), strength).steps
        assert int(drawn * strength) >= 1 and drawn >= steps
        assert drawn == steps or int((drawn - 1) * strength) < 1, "no more than it takes"


def test_relearning_leaves_no_trace_in_the_models(
    recipe_file: RecipeFile, judge: Path, cli: Cli, tmp_path: Path
) -> None:
    """Pictures drawn after it are those drawn without it."""
    file = recipe_file(evaluation=evaluation(judge, attacks=["relearning", "latent_start"]))
    assert cli("train", file, "--training.learning_rate", "0.05").status == 0
    run = tmp_path / "run"
    strips = {file.name: file.read_bytes() for file in run.glob("pictures/*-strip-*.webp")}
    assert {name.partition("-")[0] for name in strips} >= {"latent_start", "relearning"}
    result = cli(
        "evaluate",
        run,
        "--evaluation.attacks",
        "[latent_start]",
        "--cache",
        tmp_path / "other",
        "--output",
        tmp_path / "o",
    )
    assert result.status == 0, result.err
    again = {file.name: file.read_bytes() for file in (tmp_path / "o").glob("pictures/latent_start-strip-*.webp")}
    assert again and again.items() <= strips.items()
    assert set(again.values()).isdisjoint(strips[name] for name in strips if name.startswith("relearning"))


def test_a_restart_of_inversion_finds_the_same_however_many_there_are(
    recipe_file: RecipeFile, judge: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side through a small network, in turn through a larger one, and where some are found already."""
    search = {"steps": 6, "restarts": 3, "batch_size": 2, "samples": 2}
    file = recipe_file(evaluation=evaluation(judge, attacks=["inversion"], inversion=search))
    assert cli("train", file, "--training.learning_rate", "0.05").status == 0
    run = tmp_path / "run"

    def losses(restarts: int, cache: str) -> list[float]:
        asked = ("--evaluation.inversion.restarts", restarts, "--cache", tmp_path / cache)
        assert cli("evaluate", run, *asked, "--recipe", run, "--output", tmp_path / "again").status == 0
        (newest,) = sorted((tmp_path / "again/evaluations").iterdir())[-1:]
        found = json.loads((newest / "evaluation.json").read_text())["attacks"]["inversion"]["models"]["erased"]
        return list(found["loss"].values())

    together = list(numbers(run)["attacks"]["inversion"]["models"]["erased"]["loss"].values())
    assert len(set(together)) == 3
    assert losses(1, "one") == pytest.approx(together[:1], rel=1e-4)
    assert losses(3, "one") == pytest.approx(together, rel=1e-4)
    beside = plan(Recipe.load(run / "recipe.yaml"), ["evaluate"]).peak
    monkeypatch.setattr(inversion, "SMALL", 0)
    assert losses(3, "in turn") == pytest.approx(together, rel=1e-4)
    assert plan(Recipe.load(run / "recipe.yaml"), ["evaluate"]).peak <= beside


def test_onto_simplex_is_the_nearest_point() -> None:
    """Against bisection on the shift that makes the positive parts sum to one."""
    points = torch.randn(20, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    low, high = points.min(dim=1).values - 1, points.max(dim=1).values
    for _ in range(80):
        middle = (low + high) / 2
        too_much = (points - middle[:, None]).clamp_min(0).sum(dim=1) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    torch.testing.assert_close(onto_simplex(points), (points - low[:, None]).clamp_min(0), atol=1e-10, rtol=0)
    torch.testing.assert_close(onto_simplex(torch.eye(3)), torch.eye(3))


def test_interval_is_wilsons() -> None:
    """Both ends solve (p − share)² = z² p (1 − p) / n."""
    for share, count in ((0.0, 60), (0.3, 20), (0.98, 200)):
        for end in interval(share, count):
            assert (end - share) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count, abs=1e-12)


def test_a_model_with_another_autoencoder_encodes_the_pictures_itself(
    recipe_file: RecipeFile, judge: Path, cli: Cli, tmp_path: Path
) -> None:
    other = tiny_pipeline()
    torch.manual_seed(5)
    other.vae = type(other.vae).from_config(other.vae.config)
    other.save_pretrained(tmp_path / "other")
    search = {"steps": 2, "restarts": 1, "batch_size": 2, "samples": 2}
    changes = {"attacks": ["inversion"], "inversion": search, "never_learned": str(tmp_path / "other")}
    assert cli("train", recipe_file(evaluation=evaluation(judge, **changes))).status == 0
    models = numbers(tmp_path / "run")["attacks"]["inversion"]["models"]
    assert models["never learned"]["loss"] != models["base"]["loss"]
