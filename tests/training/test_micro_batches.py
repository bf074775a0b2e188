"""`gradient_accumulation: auto`: as few micro-batches as fit, more of them when memory runs out, and the same steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from diffusers import UNet2DConditionModel
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file
from test_distributed import start

from erasediff_lora.memory import room
from erasediff_lora.memory.plan import plan
from erasediff_lora.recipe import Recipe

AUTO: dict[str, Any] = {"gradient_accumulation": "auto", "batch_size": 4, "steps": 3, "checkpoint_every": 1}
RAN_OUT = "memory ran out with"
Room = Callable[[int, int], None]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Room:
    """A device that has room for the gradients of so many pictures at once, from some training pass on."""
    forward = UNet2DConditionModel.forward

    def set_room(pictures: int, since: int = 0) -> None:
        passes = 0

        def limited(self: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal passes
            passes += torch.is_grad_enabled()
            if torch.is_grad_enabled() and passes > since and len(sample) > pictures:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, sample, *arguments, **options)

        monkeypatch.setattr(UNet2DConditionModel, "forward", limited)

    return set_room


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "pytorch_lora_weights.safetensors")


def assert_equal(one: Path, other: Path, tolerance: float = 0) -> None:
    for name, tensor in adapter_of(one).items():
        torch.testing.assert_close(adapter_of(other)[name], tensor, rtol=0, atol=tolerance)


def test_what_fits_is_taken_whole(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    result = cli("train", recipe_file(training=AUTO))
    assert result.status == 0 and "auto: a batch in 1 part(s) of 4" in result.err and RAN_OUT not in result.err
    whole = tmp_path / "whole"
    assert cli("train", recipe_file(training=AUTO | {"gradient_accumulation": 1}), "--output", whole).status == 0
    assert_equal(tmp_path / "run", whole)


def test_where_memory_runs_out_the_steps_are_taken_in_parts(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, memory: Room
) -> None:
    """From the first step on: the very run that is told the number; from a later one: the same up to rounding."""
    two = tmp_path / "two"
    file = recipe_file(training=AUTO, model={"dtype": "float64"})
    assert cli("train", file, "--training.gradient_accumulation", 2, "--output", two).status == 0
    memory(2, 0)
    result = cli("train", file)
    assert result.status == 0, result.err
    assert result.err.count(RAN_OUT) == 1
    assert "memory ran out with one micro-batch: auto goes on with 2, of 2 each" in result.err
    assert_equal(tmp_path / "run", two)
    memory(1, 4)
    late = cli("train", file, "--output", tmp_path / "late")
    assert late.err.count(RAN_OUT) == 1 and "auto goes on with 4, of 1 each" in late.err
    assert_equal(tmp_path / "late", two, 1e-6)


def test_searches_are_made_in_parts_as_well(recipe_file: RecipeFile, cli: Cli, tmp_path: Path, memory: Room) -> None:
    sections: dict[str, Any] = {
        "model": {"dtype": "float64"},
        "adversary": {"pool": 2, "refresh_every": 1, "steps": 2, "batch_size": 4},
        "retain": {"focus": 0.5, "focus_every": 1, "focus_samples": 4},
    }
    file = recipe_file(training=AUTO, **sections)
    assert cli("train", file, "--output", tmp_path / "whole").status == 0
    memory(2, 0)
    result = cli("train", file)
    assert result.status == 0 and result.err.count(RAN_OUT) == 1
    assert_equal(tmp_path / "run", tmp_path / "whole", 1e-6)


def test_a_resumed_run_keeps_the_number(recipe_file: RecipeFile, cli: Cli, tmp_path: Path, memory: Room) -> None:
    file = recipe_file(training=AUTO)
    memory(2, 0)
    assert cli("train", file, "--output", tmp_path / "whole").status == 0
    assert cli("train", file, "--training.steps", 2).status == 0
    memory(4, 0)
    result = cli("train", file, "--resume")
    assert "training.gradient_accumulation: the run goes on with 2 micro-batches, as before" in result.err
    assert_equal(tmp_path / "run", tmp_path / "whole")


def test_too_little_for_one_picture(recipe_file: RecipeFile, cli: Cli, memory: Room) -> None:
    memory(0, 0)
    refused(
        cli("train", recipe_file(training=AUTO)),
        "training.gradient_accumulation = 'auto': memory ran out with one picture at once: CUDA out of memory.",
        "Set training.gradient_checkpointing: true",
    )


def test_a_number_that_does_not_fit_names_one_that_might(recipe_file: RecipeFile, cli: Cli, memory: Room) -> None:
    memory(2, 0)
    file = recipe_file(training=AUTO | {"gradient_accumulation": 1})
    refused(cli("train", file), "training.gradient_accumulation = 1: memory ran out with 4 pictures", "or to 2.")


@pytest.mark.parametrize("value", ["many", 0, -1, 1.5, True])
def test_no_number(recipe_file: RecipeFile, cli: Cli, value: Any) -> None:
    refused(
        cli("plan", recipe_file(training={"gradient_accumulation": value})),
        f"training.gradient_accumulation = {value!r}: must be a valid integer, 1 or more, or auto",
    )


def test_the_plan_finds_the_fewest_that_fit(recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: SimpleNamespace(rss=0))
    monkeypatch.setattr(room, "SMALL_BASE", 0)
    file = recipe_file(training=AUTO | {"batch_size": 16, "steps": 1})
    parts: dict[str, Any] = {"training.gradient_accumulation": 2}
    enough, little = (plan(Recipe.load(file, change), ["train"]).peak for change in (parts, {}))
    monkeypatch.setattr(room, "capacity_of", lambda found: enough)
    assert "training.gradient_accumulation: auto takes 2" in cli("plan", file).out
    result = cli("train", file)
    assert result.status == 0 and "auto: a batch in 2 part(s) of 8" in result.err
    monkeypatch.setattr(room, "capacity_of", lambda found: little // 2)
    refused(cli("train", file, "--overwrite"), "training = ", "is too little: to ")


def test_processes_agree_on_the_most_that_one_needs(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file(training=AUTO, model={"dtype": "float64"})
    assert cli("train", file, "--output", tmp_path / "one").status == 0
    program = tmp_path / "limited.py"
    program.write_text(
        "import os, sys, torch\n"
        "from diffusers import UNet2DConditionModel as Net\n"
        "forward = Net.forward\n"
        "def limited(self, sample, *a, **o):\n"
        "    if os.environ['RANK'] == '1' and torch.is_grad_enabled() and len(sample) > 1:\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory.')\n"
        "    return forward(self, sample, *a, **o)\n"
        "Net.forward = limited\n"
        "from erasediff_lora.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    running = start("train", file, program=program)
    _, errors = running.communicate(timeout=180)
    assert running.returncode == 0, errors
    assert "auto: a batch in 2 part(s) of 1" in errors
    assert_equal(tmp_path / "run", tmp_path / "one", 1e-5)
