"""Nothing of the user's is lost: what is not ours stays, and what is replaced goes when the other is whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.errors import UserError
from erasediff_lora.storage import files
from erasediff_lora.storage.ownership import MARK_FILE, claim
from erasediff_lora.storage.run_folder import lock_run
from erasediff_lora.training import loop

ADAPTER = "pytorch_lora_weights.safetensors"
FOREIGN = {
    "notes.txt": "mine",
    ".env.template": "secret",
    ".lock": "not yours",
    ".git/HEAD": "ref",
    "photos/a.png": "a",
}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def has(folder: Path, files: dict[str, str]) -> bool:
    return all((folder / name).is_file() and (folder / name).read_text() == text for name, text in files.items())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("taken", ["pictures/1.png", "checkpoints/sd15.ckpt", "report.html", "recipe.yaml", ADAPTER])
@pytest.mark.parametrize("command", ["train", "train --overwrite", "prepare", "evaluate"])
def test_a_folder_that_is_no_run_keeps_its_files(
    command: str, taken: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file()
    mine = tmp_path / "mine"
    fill(mine, FOREIGN | {taken: "mine too"})
    before = {path: path.is_file() and path.read_bytes() for path in mine.rglob("*")}
    verb, *flags = command.split()
    if verb == "evaluate" and taken in ("pictures/1.png", "report.html"):
        assert cli("train", file).status == 0
        refused(cli(verb, tmp_path / "run", "--output", mine), f"output = '{mine}': was not made by this program")
    elif verb != "evaluate":
        result = cli(verb, file, "--output", mine, *flags)
        refused(result, f"output = '{mine}': ", taken.partition("/")[0] if "recipe" not in taken else "")
        assert not (tmp_path / "cache").exists(), "noticed before the first picture"
    assert before == {path: path.is_file() and path.read_bytes() for path in mine.rglob("*")}


@pytest.mark.parametrize("mark", [None, '{"holds": "run"}', '{"holds": "run", "folder": true}', "[" * 9999])
@pytest.mark.parametrize("flags", ["train --overwrite", "train --resume", "prepare"])
def test_a_mark_in_another_folder_says_nothing(
    flags: str, mark: str | None, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """As `cp runs/a/*.json models/b` leaves it beside a model, whose parts have names that runs have too."""
    file, run, model = recipe_file(), tmp_path / "run", tmp_path / "model"
    claim(run, "run")
    fill(model, {"unet/config.json": "{}", "text_encoder/model.safetensors": "x", "samples/a.png": "a"})
    (model / MARK_FILE).write_text((run / MARK_FILE).read_text() if mark is None else mark)
    before = {path: path.is_file() and path.read_bytes() for path in model.rglob("*")}
    verb, *more = flags.split()
    refused(cli(verb, file, "--output", model, *more), f"output = '{model}': was not made by this program", "unet")
    assert before == {path: path.is_file() and path.read_bytes() for path in model.rglob("*")}


def test_a_copied_run_is_one(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """On another disk, say: its log tells."""
    file, copied = recipe_file(), tmp_path / "copied"
    assert cli("train", file).status == 0
    shutil.copytree(tmp_path / "run", copied)
    refused(cli("train", file, "--output", copied), "holds a run already")
    assert cli("train", file, "--output", copied, "--overwrite").status == 0
    assert cli("evaluate", copied).status == 0
    assert cli("prepare", file, "--output", tmp_path / "prepared").status == 0
    shutil.copytree(tmp_path / "prepared", tmp_path / "elsewhere")
    assert cli("train", file, "--output", tmp_path / "elsewhere").status == 0


def test_beside_files_of_the_user_a_run_comes_and_goes(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    mine, file = tmp_path / "mine", recipe_file()
    fill(mine, FOREIGN)
    for flags in ((), ("--overwrite",), ("--overwrite", "--training.steps", 2)):
        result = cli("train", file, "--output", mine, *flags)
        assert result.status == 0, result.err
        assert has(mine, FOREIGN) and (mine / ADAPTER).is_file()
    assert {path.name for path in (mine / "checkpoints").iterdir()} == {"step-000002"}, "of the last run alone"
    assert names(tmp_path) == {"mine", "cache", file.name}, "nothing waits beside it"


def test_a_run_comes_back_if_what_takes_its_place_fails(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, file = tmp_path / "run", recipe_file()
    assert cli("train", file).status == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def same() -> bool:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    fill(tmp_path / "pictures", {"a.png": "no picture"})
    result = cli("train", file, "--overwrite", "--forget.images.folder", tmp_path / "pictures")
    refused(result, "is not a readable picture", f"the run that was in {run} is there again")
    assert same() and not list(tmp_path.glob(".*"))

    def fail(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loop, "save", fail)
    with pytest.raises(MemoryError):
        cli("train", file, "--overwrite", "--training.seed", 5)
    assert same()
    unfinished = tmp_path / "run.unfinished"
    assert {"recipe.yaml", "checkpoints", MARK_FILE} <= names(unfinished)
    monkeypatch.undo()
    assert cli("train", unfinished, "--resume").status == 0 and (unfinished / ADAPTER).is_file()


def test_a_run_on_a_disk_of_its_own_waits_in_its_folder(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose volume is the output: nothing can be moved out of it."""
    run, file, elsewhere = tmp_path / "run", recipe_file(), []
    move = Path.replace

    def within(path: Path, target: Path) -> Path:
        if run in path.parents and run not in Path(target).parents:
            elsewhere.append(target)
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return move(path, target)

    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == run)
    monkeypatch.setattr(Path, "replace", within)
    assert cli("train", file).status == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with monkeypatch.context() as failing:
        failing.setattr(loop, "save", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            cli("train", file, "--overwrite", "--training.seed", 5)
    assert {path: path.read_bytes() for path in before} == before, "it came back"
    assert any((run / "run.unfinished/checkpoints").glob("step-*"))
    assert cli("train", file, "--overwrite", "--training.seed", 5).status == 0
    assert (run / ADAPTER).read_bytes() != before[run / ADAPTER] and not elsewhere
    assert names(tmp_path) == {"run", "cache", file.name} and not list(run.glob(".erasediff.r*"))


def test_a_run_waits_for_one_that_was_stopped(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, file = tmp_path / "run", recipe_file()
    assert cli("train", file).status == 0
    adapter = (run / ADAPTER).read_bytes()
    step = loop.take_step

    def stop(*given: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(*given)

    monkeypatch.setattr(loop, "take_step", stop)
    result = cli("train", file, "--overwrite", "--training.seed", 5)
    assert result.status == 130
    (waiting,) = tmp_path.glob(".run.*")
    assert f"the run that was in {run} waits in {waiting}" in result.err
    assert (waiting / ADAPTER).read_bytes() == adapter and not (run / ADAPTER).exists()
    monkeypatch.undo()
    refused(cli("train", file, "--training.seed", 5), "holds a run already")
    assert cli("train", file, "--training.seed", 5, "--resume").status == 0
    assert not waiting.exists() and (run / ADAPTER).read_bytes() != adapter


OLD = {"recipe.yaml": "old", ADAPTER: "old", "checkpoints/step-000002/adapter.safetensors": "old"}
NEW = {"recipe.yaml": "new", "checkpoints/step-000001/adapter.safetensors": "new", ADAPTER: "new"}


class Killed(BaseException):
    """From then on the process does nothing any more."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let nothing on the disk be changed any more after so many changes."""
    left = [0]

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return change(*given, **options)

        return changed

    def after(count: int) -> None:
        left[0] = count

    after(-1)
    for name in ("replace", "rmdir", "mkdir", "unlink", "touch"):
        monkeypatch.setattr(Path, name, dying(getattr(Path, name)))
    monkeypatch.setattr("shutil.rmtree", dying(__import__("shutil").rmtree))
    return after


@pytest.mark.parametrize("then", ["plain", "resume", "overwrite"])
def test_killed_at_any_change_of_the_folder(then: str, kill: Callable[[int], None], tmp_path: Path) -> None:
    """The old run is there or waits, whole, until the new one is; whatever is done next."""
    moments = 0
    for moment in range(60):
        run = tmp_path / str(moment) / "run"
        claim(run, "run")
        fill(run, OLD | FOREIGN)
        kill(moment)
        try:
            with lock_run(run, resume=False, overwrite=True):
                fill(run, NEW)
            finished = True
        except Killed:
            finished = False
        kill(-1)
        waiting = run.with_name(".run.erasediff-replaced")
        assert has(run, FOREIGN)
        assert has(run, NEW) or all(has(run, {n: t}) or has(waiting, {n: t}) for n, t in OLD.items()), moment
        new = has(run, NEW)
        try:
            with lock_run(run, resume=then == "resume", overwrite=then == "overwrite"):
                assert new or has(run, OLD) or has(waiting, OLD), moment
                fill(run, NEW)
            assert has(run, NEW) and not waiting.exists()
        except UserError as error:
            assert then == "plain" and "holds a run already" in str(error)
            assert (run / "recipe.yaml").exists()
        assert has(run, FOREIGN)
        moments += not finished
        if finished:
            break
    assert moments > 8


def test_what_others_may_read_is_up_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for umask, modes in ((0o022, (0o644, 0o755)), (0o077, (0o600, 0o700)), (0o002, (0o664, 0o775))):
        monkeypatch.setattr(files, "UMASK", umask)
        files.write_text(tmp_path / "file", "x")
        with files.atomic_folder(tmp_path / "folder"):
            pass
        assert tuple((tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")) == modes


def test_a_lock_that_is_a_pipe(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run/.erasediff.lock")
    refused(cli("train", recipe_file()), f"output = '{tmp_path / 'run/.erasediff.lock'}': cannot be written: Invalid")


def test_a_folder_above_is_kept_for_the_way_to_the_run(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("prepare", recipe_file(), "--output", tmp_path / "a/../b").status == 0
    assert (tmp_path / "a/../b/forget_set.png").is_file()


def test_an_evaluation_does_not_go_beside_the_root(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("evaluate", "/", "--recipe", recipe_file()), "target = '/': is the root of a disk.")
