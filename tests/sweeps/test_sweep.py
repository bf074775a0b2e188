"""`erasediff-lora sweep`: a grid of runs, started, gone on with, compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.cli import main
from erasediff_lora.registry import LAUNCHERS
from erasediff_lora.sweeps.grid import combinations, parse_grid
from erasediff_lora.sweeps.launchers import Job
from erasediff_lora.sweeps.launchers.submitit import Submitit


class Inline:
    """Runs the commands in this process; what it was given is kept."""

    seen: list[str]
    stops_after: int | None = None

    def __init__(self, at_a_time: int | None, options: Mapping[str, Any]) -> None:
        self.options = options
        Inline.seen = []

    def launch(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, int]]:
        for job in jobs:
            if len(Inline.seen) == Inline.stops_after:
                raise KeyboardInterrupt
            Inline.seen.append(job.name)
            job.log.write_text("epoch 1\rthe last line\n\n")
            yield job, main(job.command[3:])


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAUNCHERS._builtin, "inline", f"{__name__}:Inline")
    monkeypatch.setitem(LAUNCHERS._loaded, "inline", Inline)
    monkeypatch.setattr(Inline, "stops_after", None)


SHORT = ("--training.steps", "1", "--evaluation.forget_samples", "2", "--evaluation.retain_samples", "2")


def sweep(cli: Cli, recipe: Path, folder: Path, *words: object, launcher: str = "inline") -> Any:
    return cli("sweep", recipe, "--folder", folder, "--launcher", launcher, *SHORT, *words)


def test_every_combination_is_a_run_and_all_are_compared(cli: Cli, recipe_file: RecipeFile, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    result = sweep(
        cli, recipe_file(), folder, "--grid", "training.seed=0,1", "--grid", "training.learning_rate=0.001,0.01"
    )
    assert result.status == 0, result.err
    names = {f"seed-{seed}_learning_rate-{rate}" for seed in (0, 1) for rate in ("0.001", "0.01")}
    assert set(Inline.seen) == names
    for name in names:
        values = yaml.safe_load((folder / name / "recipe.yaml").read_text())["training"]
        assert name == f"seed-{values.get('seed', 0)}_learning_rate-{values.get('learning_rate', 0.001)}"
        assert name in result.out
    assert (folder / "comparison.html").is_file()


def test_the_same_command_goes_on_where_it_ended(
    cli: Cli, recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, recipe, grid = tmp_path / "sweep", recipe_file(), ("--grid", "training.seed=0,1")
    monkeypatch.setattr(Inline, "stops_after", 1)
    assert sweep(cli, recipe, folder, *grid).status == 130
    assert (folder / "comparison.html").is_file() and not (folder / "seed-1").exists()
    adapter = (folder / "seed-0" / "adapter_model.safetensors").stat()

    monkeypatch.setattr(Inline, "stops_after", None)
    assert sweep(cli, recipe, folder, *grid).status == 0 and Inline.seen == ["seed-1"]
    assert (folder / "seed-0" / "adapter_model.safetensors").stat().st_mtime_ns == adapter.st_mtime_ns

    refused(sweep(cli, recipe, folder, *grid, "--training.batch_size", "3"), "holds a run seed-0 of another recipe")
    again = sweep(cli, recipe, folder, *grid, "--training.batch_size", "3", "--overwrite")
    assert again.status == 0 and Inline.seen == ["seed-0", "seed-1"]


def test_failed_runs_are_named_and_the_others_go_on(cli: Cli, recipe_file: RecipeFile, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    locked = folder / "seed-0"
    locked.mkdir(parents=True)
    (locked / "checkpoints").write_text("in the way")
    result = sweep(cli, recipe_file(), folder, "--grid", "training.seed=0,1")
    refused(result, "seed-0", "ended with status 2: the last line", str(folder / "logs" / "seed-0.log"))
    assert "seed-1" in result.out


def test_all_is_checked_before_anything_is_written(cli: Cli, recipe_file: RecipeFile, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "sweep", recipe_file()
    refused(sweep(cli, recipe, folder, "--grid", "training.seed=0,-1"), "training.seed", "-1")
    refused(sweep(cli, recipe, folder, "--grid", "trainin.seed=0"), "trainin")
    refused(sweep(cli, recipe, folder), "--grid", "Write --grid training.seed=0,1,2.")
    refused(sweep(cli, recipe, folder, "--grid", "training.seed="), "is no field with values")
    refused(sweep(cli, recipe, folder, "--grid", "output=a,b"), "Use --folder")
    refused(sweep(cli, recipe, folder, "--grid", "training.seed=0", "--output", "x"), "--output", "Use --folder")
    refused(sweep(cli, recipe, folder, "--grid", "training.seed=0", "--grid", "training.seed=1"), "a second time")
    refused(sweep(cli, recipe, folder, "--grid", "training.seed=0", "--jobs", "0"), "--jobs")
    ten = ",".join("0123456789")
    many = [word for field in "abcdefghijklmnop" for word in ("--grid", f"{field}={ten}")]
    refused(sweep(cli, recipe, folder, *many), "makes 10,000,000,000,000,000 runs, and 10,000 are the most")
    refused(sweep(cli, recipe, folder, "--grid", "training.seed=0", launcher="inlin"), "Did you mean 'inline'?")
    refused(sweep(cli, recipe, folder, "--grid", "training.seed=0", "--launch", "x"), "--launch NAME=VALUE")
    processes = sweep(cli, recipe, folder, "--grid", "training.seed=0", "--launch", "x=1", launcher="processes")
    refused(processes, "have no options")
    dry = sweep(cli, recipe, folder, "--grid", "training.seed=0,1", "--dry-run")
    assert dry.status == 0 and "2 runs" in dry.out and "seed-1" in dry.out
    assert not folder.exists()


def test_a_stranger_s_run_is_left_alone(cli: Cli, recipe_file: RecipeFile, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    (folder / "seed-0").mkdir(parents=True)
    (folder / "seed-0" / "recipe.yaml").write_text("mine")
    refused(sweep(cli, recipe_file(), folder, "--grid", "training.seed=0"), "is a run of something else")
    assert (folder / "seed-0" / "recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize("launcher", ["processes", "submitit"])
def test_runs_in_processes_of_their_own(cli: Cli, recipe_file: RecipeFile, tmp_path: Path, launcher: str) -> None:
    pytest.importorskip("submitit")
    folder = tmp_path / "sweep"
    options = ("--launch", "cluster=local") if launcher == "submitit" else ()
    result = sweep(cli, recipe_file(), folder, "--grid", "training.seed=0,1", *options, launcher=launcher)
    assert result.status == 0, result.err
    assert "2 of 2" in result.err and (folder / "comparison.html").is_file()
    assert "report" in (folder / "logs" / "seed-1.log").read_text()


def test_a_launcher_that_is_not_installed_or_refuses_its_options(
    cli: Cli, recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, grid = tmp_path / "sweep", ("--grid", "training.seed=0")
    for name in ("ray", "submitit"):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, name, None)
            result = sweep(cli, recipe_file(), folder, *grid, launcher=name)
        refused(result, f"needs the package {name}", f"pip install 'erasediff-lora[{name}]'")
    pytest.importorskip("submitit")
    options = ("--launch", "cluster=local", "--launch", "not_an_option=1")
    refused(sweep(cli, recipe_file(), folder, *grid, *options, launcher="submitit"), "--launch", "not_an_option")


def test_names_are_short_distinct_and_fit_for_folders() -> None:
    found = combinations(
        parse_grid(["forget.concepts=[{name: cat}],[{name: a/b}]", "adapter.targets=[x, y],attention"])
    )
    assert len(found) == 4 and all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABC-_.0123456789") for name in found)
    assert list(combinations(parse_grid(["forget.count=1", "retain.count=2"]))) == ["forget.count-1_retain.count-2"]
    long = combinations({"output_name": ["x" * 300, "x" * 301, "X" * 300]})
    assert len({name.lower() for name in long}) == 3 and max(map(len, long)) < 130
    assert max(len(name.encode()) for name in combinations({"concept": ["猫" * 100, "猫" * 101]})) < 130
    assert Submitit(3, {"cluster": "local"}).parameters["slurm_array_parallelism"] == 3
