"""Several real processes over gloo: they take the step of one, and start, stop and fail together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from bench_kills import ended, fork
from bench_nodes import environment
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file
from tiny_transformers import tiny_flux_pipeline

from erasediff_lora.cli import main
from erasediff_lora.memory.plan import plan
from erasediff_lora.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent
PROGRAM = ROOT / "scripts/train_erase_lora.py"


def start(file: object, *flags: object, processes: int = 2, program: Path = PROGRAM) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    return subprocess.Popen(
        [str(part) for part in [*launcher, program, file, *flags]],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def launch(file: Path, *flags: object) -> tuple[int, str]:
    running = start(file, *flags)
    _, errors = running.communicate(timeout=180)
    return running.returncode, errors


def forked(file: Path, *flags: object) -> tuple[int, str]:
    """The same in forks of this process, which has imported all that takes a new one seconds."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    said = file.with_suffix(".err")

    def work(rank: int) -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        os.environ |= environment(rank, port, 2) | {"WORLD_SIZE": "2"}
        if status := main(["train", str(file), *map(str, flags)]):
            sys.stderr.flush()
            os._exit(status)

    said.unlink(missing_ok=True)
    codes = ended([fork(partial(work, rank)) for rank in range(2)])
    return max(1 if code is None else abs(code) for code in codes), said.read_text()


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def assert_same_training(two: Path, one: Path) -> None:
    for a, b in zip(log_of(two), log_of(one), strict=True):
        assert a["lambda"] == pytest.approx(b["lambda"], rel=1e-6)
        assert a["retain_loss"] == pytest.approx(b["retain_loss"], rel=1e-6)
        assert a["gap"] == pytest.approx(b["gap"], rel=1e-5)
    assert any(line["lambda"] > 0 for line in log_of(two))
    for name, tensor in adapter_of(one).items():
        torch.testing.assert_close(adapter_of(two)[name], tensor, rtol=0, atol=1e-5)


@pytest.fixture
def exact(recipe_file: RecipeFile) -> Any:
    """A recipe whose rounding is out of the way, with sets smaller than a batch and of unlike sizes."""
    return recipe_file(
        model={"dtype": "float64"},
        forget={"count": 3},
        training={"batch_size": 4, "checkpoint_every": 2},
        objective={"barrier": "gap"},
        retain={"focus": 0.5, "focus_every": 1, "contrast": 0.5},
        adversary={"pool": 2, "refresh_every": 2, "steps": 2, "batch_size": 2},
    )


def test_two_processes_take_the_step_of_one_with_the_joint_batch(exact: Any, cli: Cli, tmp_path: Path) -> None:
    status, errors = launch(exact, "--output", tmp_path / "two")
    assert status == 0, errors
    assert "2 processes share every batch" in errors
    status, errors = forked(exact, "--output", tmp_path / "split", "--training.shard", "true")
    assert status == 0, errors
    assert cli("train", exact).status == 0
    assert_same_training(tmp_path / "two", tmp_path / "run")
    assert_same_training(tmp_path / "split", tmp_path / "run")


def test_two_processes_on_a_transformer(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """FLUX, its weights whole and split (FSDP2); conditions are searched for without its text encoders."""
    tiny_flux_pipeline().save_pretrained(tmp_path / "flux")
    file = recipe_file(
        model={"base": str(tmp_path / "flux"), "family": "flux", "dtype": "float64"},
        sampling={"steps": 2, "guidance": 2.0, "batch_size": 4, "resolution": 32},
        training={"batch_size": 4, "steps": 2},
        objective={"barrier": "gap"},
        adversary={"pool": 2, "refresh_every": 1, "steps": 1, "batch_size": 2},
    )
    assert cli("train", file).status == 0
    for name, options in (("two", ()), ("split", ("--training.shard", "true"))):
        status, errors = forked(file, "--output", tmp_path / name, *options)
        assert status == 0, errors
        assert_same_training(tmp_path / name, tmp_path / "run")


def test_two_processes_solve_for_the_same_multipliers(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Of several concepts, from the closed form, with the weights whole and split; searches are shared out."""
    file = recipe_file(
        model={"dtype": "float64"},
        forget={"concepts": [{"name": name, "anchor": "dog"} for name in ("cat", "car", "tree")], "count": 6},
        retain={"concepts": ["dog"]},
        training={"batch_size": 8},
        adapter={"start": "closed_form"},
        adversary={"pool": 2, "refresh_every": 2, "steps": 2, "batch_size": 2},
    )
    assert cli("train", file).status == 0
    for name, options in (("two", ()), ("split", ("--training.shard", "true"))):
        status, errors = forked(file, "--output", tmp_path / name, *options)
        assert status == 0, errors
        for a, b in zip(log_of(tmp_path / name), log_of(tmp_path / "run"), strict=True):
            for key in (f"{metric}/{name}" for metric in ("lambda", "forget_loss") for name in ("cat", "car", "tree")):
                assert a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-12)
        for key, tensor in adapter_of(tmp_path / "run").items():
            torch.testing.assert_close(adapter_of(tmp_path / name)[key], tensor, rtol=0, atol=1e-5)


def test_a_stopped_run_of_two_ends_like_the_whole(exact: Any, cli: Cli, tmp_path: Path) -> None:
    status, errors = launch(exact, "--output", tmp_path / "whole", "--training.steps", 40)
    assert status == 0, errors
    running = start(exact, "--output", tmp_path / "stopped", "--training.steps", 40)
    wait_for_steps(tmp_path / "stopped", 3)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=120)
    assert "stopped by SIGTERM after step" in errors
    assert len(log_of(tmp_path / "stopped")) < 40
    status, errors = launch(exact, "--output", tmp_path / "stopped", "--training.steps", 40, "--resume")
    assert status == 0, errors
    for name, tensor in adapter_of(tmp_path / "whole").items():
        assert torch.equal(adapter_of(tmp_path / "stopped")[name], tensor)


def test_two_processes_prepare_their_objective_together(recipe_file: RecipeFile, tmp_path: Path) -> None:
    """And before it find the anchor and the neighbours, which the first one tells."""
    file = recipe_file(
        retain={"neighbours": 2, "vocabulary": "imagenet"}, objective={"name": "saliency", "mask_batches": 2}
    )
    status, errors = forked(file)
    assert status == 0, errors
    assert errors.count("anchor of 'cat': ") == 1
    recipe = Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert recipe.forget.concepts[0].anchor in recipe.retain.concepts and len(recipe.retain.near) == 2
    assert "preparation is from the cache" not in errors
    status, errors = forked(file, "--overwrite")
    assert status == 0, errors
    assert errors.count("preparation is from the cache") == 1, "both take it, and the first one says so"


def test_a_main_process_that_dies_ends_the_run_with_a_word(exact: Any, tmp_path: Path) -> None:
    running = start(exact, "--output", tmp_path / "run", "--training.steps", 1000)
    wait_for_steps(tmp_path / "run", 4)
    (victim,) = [p for p in psutil.Process(running.pid).children() if p.environ().get("RANK") == "0"]
    victim.kill()
    _, errors = running.communicate(timeout=60)
    assert running.returncode != 0
    assert "processes = 2: process 1 lost another one" in errors
    assert "add --resume." in errors
    status, errors = launch(exact, "--output", tmp_path / "run", "--training.steps", 6, "--resume")
    assert status == 0, errors


def test_what_stops_one_process_stops_all(exact: Any, tmp_path: Path) -> None:
    status, errors = forked(exact, "--training.batch_size", 3)
    assert status != 0
    assert "training.batch_size = 3: cannot be shared evenly by 2 processes. Use a multiple of 2." in errors
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("{}")
    status, errors = forked(exact)
    assert status != 0
    assert errors.count("was not made by this program") == 2, "the second process says so too, and does not wait"


def test_a_split_base_is_planned_by_its_share(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(exact)
    whole = plan(recipe)["train"].parts
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = plan(recipe)["train"].parts
    split = plan(Recipe.load(exact, {"training.shard": True}))["train"].parts
    assert shared["weights"] == whole["weights"] and shared["activations"] < whole["activations"]
    assert split["weights"] < whole["weights"] and split["activations"] == shared["activations"]


def wait_for_steps(folder: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        log = folder / "training_log.jsonl"
        if log.exists() and log.read_text().count("\n") >= steps:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {steps} steps in two minutes")


def test_what_cannot_be_split_is_refused(recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(training={"shard": True})
    alone = "cannot go with training.shard: one process would draw alone, with its share of the weights."
    judged = ("--evaluation.judge", "demo", "--training.evaluate_every", 2)
    refused(cli("train", file, "--training.sample_every", 2), f"training.sample_every = 2: {alone} Omit one of them.")
    refused(cli("train", file, *judged), f"training.evaluate_every = 2: {alone}")
    refused(cli("train", file, "--model.quantize", "nf4"), "model.quantize = 'nf4': cannot go with training.shard")
    refused(cli("train", file, "--adapter", "none"), "training.shard = True: leaves no whole weights to train")


@pytest.mark.parametrize("file", sorted((ROOT / "recipes/accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configurations_are_accelerates(file: Any) -> None:
    """accelerate refuses keys that it does not know; the number of processes is what each is for."""
    config = load_config_from_file(str(file))
    assert config.mixed_precision == "no", "the recipe decides"
    assert config.num_processes == {"one_gpu": 1, "gpus": 2, "machines": 8}[file.stem]
    assert (config.distributed_type == DistributedType.MULTI_GPU) == (config.num_processes > 1)


def test_a_single_process_has_nothing_to_split(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file(), "--training.shard", "true").status == 0
    assert cli("train", recipe_file(), "--output", tmp_path / "plain").status == 0
    assert adapter_of(tmp_path / "run").keys() == adapter_of(tmp_path / "plain").keys()
    for name, tensor in adapter_of(tmp_path / "plain").items():
        assert torch.equal(adapter_of(tmp_path / "run")[name], tensor)


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_engines_that_step_by_themselves_are_refused(
    recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch, engine: str, tmp_path: Path
) -> None:
    """As `accelerate launch` with such a configuration says it: through the environment."""
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    refused(
        cli("train", recipe_file()),
        f"distributed_type = '{engine}': takes the backward pass over",
        "Use MULTI_GPU",
        "add --training.shard true",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--mixed_precision = 'bf16': would not be heeded: model.dtype"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--gradient_accumulation_steps = '4': would not be heeded"),
    ],
)
def test_what_the_launcher_is_asked_for_and_the_recipe_says(
    variable: str, value: str, told: str, recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    refused(cli("train", recipe_file()), told)
