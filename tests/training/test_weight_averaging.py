"""The adapter that a run writes is the mean of those of some of its last steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fixtures import Cli, RecipeFile
from safetensors.torch import load_file
from tiny import tiny_classifier

from erasediff_lora.memory.plan import plan
from erasediff_lora.recipe import Recipe

AVERAGED = {"steps": 6, "checkpoint_every": 1, "keep_checkpoints": 9, "average": 3, "average_every": 2}


def written(run: Any) -> dict[str, torch.Tensor]:
    """Of adapter_model.safetensors, named as in the checkpoints."""
    stored = load_file(run / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}


def at(run: Any, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:06d}/adapter.safetensors")


def assert_mean(adapter: Any, adapters: Any) -> None:
    assert adapter.keys() == adapters[0].keys()
    for name, tensor in adapter.items():
        mean = sum(other[name].double() for other in adapters) / len(adapters)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-9)


def test_it_is_the_mean_of_the_last_and_earlier_ones(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file(training=AVERAGED)).status == 0
    run = tmp_path / "run"
    assert_mean(written(run), [at(run, step) for step in (2, 4, 6)])
    assert not all(written(run)[name].equal(tensor) for name, tensor in at(run, 6).items())


def test_steps_before_the_first_do_not_count(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file(training=AVERAGED | {"average_every": 4})).status == 0
    assert_mean(written(tmp_path / "run"), [at(tmp_path / "run", step) for step in (2, 6)])


def test_training_goes_on_from_the_last_step_and_not_from_the_mean(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """A run that was to end at 4 goes on to 6 and ends as one that was to end there."""
    file = recipe_file(training=AVERAGED | {"checkpoint_every": 4})
    assert cli("train", file, "--training.steps", 4).status == 0
    assert cli("train", file, "--resume").status == 0
    assert cli("train", file, "--output", tmp_path / "whole").status == 0
    one, other = written(tmp_path / "run"), written(tmp_path / "whole")
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_a_sum_that_does_not_count_any_more_is_left_out(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Step 4 alone would count, but it was summed up with step 2."""
    file = recipe_file(training=AVERAGED)
    assert cli("train", file).status == 0
    result = cli("train", file, "--resume", "--training.steps", 8)
    assert result.status == 0
    assert "the mean of the last adapters leaves out those of steps 4: the run was to end elsewhere" in result.err
    assert_mean(written(tmp_path / "run"), [at(tmp_path / "run", step) for step in (6, 8)])


def test_evaluating_chooses_one_instead(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    options = {"judge": f"transformers:{judge}", "metrics": ["accuracy"], "strength_sweep": {"samples": 4}}
    assert cli("train", recipe_file(training=AVERAGED | {"evaluate_every": 2}, evaluation=options)).status == 0
    chosen = at(tmp_path / "run", 2)
    assert all(written(tmp_path / "run")[name].equal(tensor) for name, tensor in chosen.items())


def test_the_plan_counts_what_waits_in_main_memory(recipe_file: RecipeFile) -> None:
    one, three = (
        plan(Recipe.load(recipe_file(training={"average": count})), ["train"])["train"].parts for count in (1, 3)
    )
    assert three["trained"] == 2 * one["trained"] > 0, "the adapter, and the sum of the others"
