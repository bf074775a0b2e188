"""Resuming: what is due at a step is made up for, and what has changed since is refused or said."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from encoded import folder_of, noise
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny import tiny_classifier

from erasediff_lora.recipe import Recipe
from erasediff_lora.training import loop
from erasediff_lora.training.checkpoints import newest_checkpoint, save_checkpoint
from erasediff_lora.training.sample_sheets import SampleSheets
from erasediff_lora.training.selection import Selection


class Stopped(BaseException):
    """As if the program were gone."""


def rates(run: Path) -> list[float]:
    return [json.loads(line)["learning_rate"] for line in (run / "training_log.jsonl").read_text().splitlines()]


@pytest.fixture
def evaluated(recipe_file: RecipeFile, tmp_path: Path) -> Path:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"])
    training = {"steps": 4, "checkpoint_every": 2, "evaluate_every": 2, "sample_every": 2}
    return recipe_file(
        training=training, evaluation={"judge": f"transformers:{judge}", "strength_sweep": {"samples": 2}}
    )


@pytest.mark.parametrize("due", [SampleSheets, Selection])
def test_what_was_due_at_the_checkpoint_is_made_up_for(
    due: Any, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the checkpoint of step 2 is written, before or in what is due at that step."""
    whole = loop.train(Recipe.load(evaluated, {"output": str(tmp_path / "whole")}))

    def stop(hook: Any, done: int) -> None:
        if done == 2:
            raise Stopped

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(due, "after_saving", stop)
        loop.train(Recipe.load(evaluated))
    assert newest_checkpoint(tmp_path / "run").step == 2
    run = loop.train(Recipe.load(evaluated), resume=True)
    for name in ("selection.json", "samples/step-000002.png", "samples/step-000004.png"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    one, two = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (run, whole))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "tail", ['{"step": 5, "retain_l', "\n\n", 'not json\n{"step": 1e999}\n' + "[" * 10**5, "\udcff"]
)
def test_a_torn_line_of_the_log_is_dropped(tail: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file()
    assert cli("train", file).status == 0
    log = tmp_path / "run/training_log.jsonl"
    log.write_bytes(log.read_bytes() + tail.encode(errors="surrogateescape"))
    assert cli("train", file, "--resume", "--training.steps", 6).status == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_longer_run_goes_on_from_the_rate_of_its_own_schedule(
    schedule: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """By hand: half of the way through 8 steps both schedules are at half of the peak."""
    file = recipe_file(training={"lr_schedule": schedule, "learning_rate": 1e-3})
    assert cli("train", file).status == 0
    result = cli("train", file, "--resume", "--training.steps", 8)
    assert result.status == 0
    said = "the run was to take 4 steps and now takes 8: the learning rate goes on from 0.0005, not from 0"
    assert (said in result.err) == (schedule != "constant")
    found = rates(tmp_path / "run")
    if schedule != "constant":
        whole = tmp_path / "whole"
        assert cli("train", file, "--output", whole, "--training.steps", 8).status == 0
        assert found[4:] == rates(whole)[4:]
    else:
        assert found == [1e-3] * 8


def test_what_lies_beside_checkpoints_is_the_users(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """A copy of one, to keep it, is none of the run's."""
    file, folder = recipe_file(training={"steps": 4, "checkpoint_every": 1}), tmp_path / "run/checkpoints"
    assert cli("train", file, "--training.steps", 2).status == 0
    shutil.copytree(folder / "step-000002", folder / "step-000001-good")
    (folder / "step-000000").write_text("a note")
    (folder / "step-notes.txt").write_text("mine")
    assert cli("train", file, "--resume").status == 0
    assert {"step-000001-good", "step-000000", "step-notes.txt", "step-000004"} <= {
        one.name for one in folder.iterdir()
    }


def test_fewer_steps_than_were_taken_are_refused(recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file()
    assert cli("train", file).status == 0
    result = cli("train", file, "--resume", "--training.steps", 3)
    refused(result, "training.steps = 3: the run in", "has taken 4 already. Set it to 4 or more")


def test_adapters_that_the_mean_lost_are_named(recipe_file: RecipeFile, cli: Cli) -> None:
    """Of 8 steps the mean of three, two apart, has those of steps 4 and 6; the run of 4 steps summed up 2."""
    file = recipe_file(training={"average": 3, "average_every": 2})
    assert cli("train", file).status == 0
    assert "leaves out" not in cli("train", file, "--resume", "--training.steps", 8).err, "4 is the checkpoint's own"
    other = cli("train", file, "--resume", "--training.steps", 9)
    assert other.status == 0
    assert "the mean of the last adapters leaves out those of steps 5, 7: the run was to end elsewhere" in other.err


def test_another_base_is_refused(recipe_file: RecipeFile, tiny_base: Path, cli: Cli, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "own")
    file = recipe_file(model={"base": str(base)})
    assert cli("train", file).status == 0
    weights = base / "unet/diffusion_pytorch_model.safetensors"
    changed = load_file(weights)
    next(iter(changed.values())).mul_(1.5)
    save_file(changed, weights, metadata={"format": "pt"})
    before = (tmp_path / "run/pytorch_lora_weights.safetensors").read_bytes()
    result = cli("train", file, "--resume", "--training.steps", 6)
    refused(result, "model.base = ", "its weights or its configuration are not those that the run was started with.")
    assert (tmp_path / "run/pytorch_lora_weights.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", ["forget", "retain"])
def test_other_pictures_are_refused(kind: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "pictures", a=noise(1), b=noise(2))
    images = {"images": {"folder": str(pictures), "caption": "a photo of a cat"}}
    file = recipe_file(**{kind: images})
    assert cli("train", file).status == 0
    noise(3).save(pictures / "b.png")
    result = cli("train", file, "--resume", "--training.steps", 6)
    refused(result, f"{kind}.images = '{pictures}': its pictures or captions are not those")
    noise(2).save(pictures / "b.png")
    assert cli("train", file, "--resume", "--training.steps", 6).status == 0, "put back"


def test_other_versions_are_said(recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    file = recipe_file()
    assert cli("train", file).status == 0
    here = "erasediff_lora.training.origin.version"
    monkeypatch.setattr(here, lambda name: "9.9" if name == "diffusers" else version(name))
    result = cli("train", file, "--resume", "--training.steps", 6)
    assert result.status == 0
    assert f"so that the last bits may differ: diffusers was {version('diffusers')}, is 9.9" in result.err
    again = cli("train", file, "--resume", "--training.steps", 8)
    assert "last bits" not in again.err, "said once"


def test_a_checkpoint_that_does_not_say_what_it_is_of_goes_on(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """Those of earlier versions have neither origin nor skipped steps."""
    file, run = recipe_file(), tmp_path / "run"
    assert cli("train", file).status == 0
    found = newest_checkpoint(run)
    shutil.rmtree(run / "checkpoints/step-000004")
    bare = {name: value for name, value in found.trainer.items() if name not in ("origin", "skipped")}
    save_checkpoint(run, 4, found.adapter, bare, keep=2)
    assert cli("train", file, "--resume", "--training.steps", 6).status == 0


def test_a_damaged_selection_is_measured_again(evaluated: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", evaluated).status == 0
    (tmp_path / "run/selection.json").write_text(
        '[{"step": 2, "floor": 0.1, "retain_accuracy": [], "unlearning_accuracy": 1}]'
    )
    result = cli("train", evaluated, "--resume", "--training.steps", 6)
    assert result.status == 0 and "selection.json is damaged" in result.err
    rows = json.loads((tmp_path / "run/selection.json").read_text())
    assert [row["step"] for row in rows] == [4, 6]


def test_another_judge_cannot_choose_among_the_same_adapters(evaluated: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", evaluated).status == 0
    other = tiny_classifier(tmp_path / "other", ["cat", "dog", "car"], favourite="dog")
    judge = ("--evaluation.judge", f"transformers:{other}")
    result = cli("train", evaluated, "--resume", "--training.steps", 6, *judge)
    refused(result, "evaluation.judge = 'transformers:", "when the run was started.")
