"""What strangers made, other than adapters and recipes: run folders, evaluations, data sets. Opened, never trusted."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from fixtures import Cli, RecipeFile, Result
from hostile_files import RUNS, SETS
from measured_run import accuracy, edit, measure
from picture_folder import pictures
from refusals import refused

from erasediff_lora.data.captions import LARGEST_LISTING
from erasediff_lora.evaluation.report import write_report
from erasediff_lora.storage import checksummed
from erasediff_lora.storage.examples import MOST
from erasediff_lora.storage.files import sha256

SECRET = "xyzzy-the-password"


@pytest.fixture
def measured(run: Path) -> Path:
    measure(run, accuracy(per_concept={"cat": {"unlearning_accuracy": 1.0, "pictures": 400}}))
    (run.parent / "secret.txt").write_text(f"{SECRET}\n")
    (run.parent / "secret.json").write_text(json.dumps({SECRET: SECRET}))
    return run


@contextmanager
def bounded() -> Iterator[None]:
    """One second of the processor, 500 MB beyond what was ever held."""
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000


def shown(result: Result) -> str:
    text = result.out + result.err
    assert "Traceback" not in text and SECRET not in text and len(result.err) < 3000
    assert text.replace("\n", "").isprintable()
    return text


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("verb", ["compare", "publish"])
def test_runs(name: str, verb: str, measured: Path, cli: Cli) -> None:
    """Refused, or what is spoiled is left out; nothing outside of the run is read, and no page or card made of it."""
    RUNS[name](measured)
    page, commands = measured.parent / "page.html", {"publish": ("--repo", "me/x", "--dry_run")}
    with bounded():
        result = cli(verb, measured, *commands.get(verb, ("--output", page)))
    shown(result)
    assert result.status in (0, 2)
    made = [page] if verb == "compare" else [file for file in (measured / "hub").rglob("*") if file.is_file()]
    texts = {file.suffix: file.read_bytes() for file in made if file.exists()}
    assert (result.status == 2) == (not texts)
    assert not any(SECRET.encode() in text for text in texts.values())
    body = (
        texts.get(".html") or texts.get(".md", b"---\n---\n").split(b"\n---\n", 1)[1]
    )  # behind what is data for the hub
    assert b"<script>alert" not in body


EXAMPLE = {"kind": "forget", "prompt": "a cat", "seed": 1, "base": "forget_set.png", "erased": "forget_set.png"}
EXAMPLES: dict[str, tuple[Callable[[Path], object], int]] = {
    "a link": (lambda file: file.symlink_to("../secret.json"), 0),
    "a pipe": (os.mkfifo, 0),
    "two gigabytes": (lambda file: file.open("wb").truncate(2**31), 0),
    "nested 100,000 deep": (lambda file: file.write_text("[" * 10**5), 0),
    "no list": (lambda file: file.write_text("3"), 0),
    "a hundred thousand": (lambda file: file.write_text(json.dumps([EXAMPLE] * 10**5)), MOST),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_for_a_card(name: str, measured: Path, cli: Cli) -> None:
    (measured.parent / "secret.json").write_text(json.dumps([EXAMPLE | {"prompt": SECRET}]))
    spoil, count = EXAMPLES[name]
    spoil(measured / "examples.json")
    with bounded():
        result = cli("publish", measured, "--repo", "me/x", "--dry_run")
    assert result.status == 0, result.err
    shown(result)
    assert SECRET not in (measured / "hub/README.md").read_text()
    of_evaluation = len(json.loads((measured / "evaluation.json").read_text())["pictures"])
    assert len(list((measured / "hub/images").glob("*.png"))) == of_evaluation + count
    assert ("examples.json is left out" in result.err) == (count == 0)


@pytest.mark.parametrize("name", ["training_log.jsonl", "selection.json", "data_report.json"])
@pytest.mark.parametrize(
    "content",
    ["", "[", '{"step": 1}\n[', "[1]", '{"a": {"b": []}}', "[" * 10**5, '[{"step": "x"}]', "\x00", '{"step": [[[]]]}'],
)
def test_a_report_is_made_without_what_is_spoiled(
    name: str, content: str, measured: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (measured / name).write_text(content)
    with bounded():
        write_report(measured)
    assert (measured / "report.html").stat().st_size > 5000


@pytest.mark.parametrize("name", ["training_log.jsonl", "selection.json", "data_report.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_nor_of_what_is_no_file_of_the_run(name: str, kind: str, measured: Path) -> None:
    (measured / name).unlink(missing_ok=True)
    make: dict[str, Callable[[Path], object]] = {
        "link": lambda file: file.symlink_to(measured.parent / "secret.json"),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
    }
    make[kind](measured / name)
    write_report(measured)
    assert SECRET not in (measured / "report.html").read_text()


def test_the_recipe_of_a_run_reads_no_other_files(measured: Path, cli: Cli) -> None:
    """Its names would be published."""
    file = measured / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    secret = str(measured.parent / "secret.txt")
    for table, key, given in (
        ("forget", "concepts", secret),
        ("forget", "concepts", {"file": secret}),
        ("retain", "concepts", secret),
        ("retain", "vocabulary", secret),
    ):
        file.write_text(yaml.safe_dump(values | {table: values[table] | {key: given}}))
        for command in (("publish", measured, "--repo", "me/x", "--dry_run"), ("evaluate", measured)):
            result = cli(*command)
            refused(result, f"{table}.{key} = ", "is a list in a file", f"If you trust it, add --{table}.{key}")
            shown(result)


def test_the_recipe_of_a_run_opens_no_pickles(measured: Path, cli: Cli) -> None:
    file = measured / "recipe.yaml"
    values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(values | {"model": values["model"] | {"allow_pickle": True}}))
    for verb in ("evaluate", "plan"):
        refused(cli(verb, measured), "model.allow_pickle = True", "--model.allow_pickle true")
    assert cli("plan", measured, "--model.allow_pickle", "true").status == 0


def test_names_are_shown_and_commands_to_the_terminal_not_obeyed(measured: Path, cli: Cli) -> None:
    edit(measured, concepts=["cat\x1b[2J\x07"])
    result = cli("compare", measured, "--output", measured.parent / "page.html")
    assert "\\x1b[2J\\x07" in shown(result)


@pytest.mark.parametrize("name", SETS)
def test_sets(name: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", (32, 32), (32, 32))
    (tmp_path / "secret.txt").write_text(f"{SECRET}\n")
    SETS[name](folder)
    file = recipe_file(forget={"images": {"folder": str(folder), "caption": "a {concept}"}})
    with bounded():
        result = cli("prepare", file)
    refused(result, "forget.images")
    shown(result)


def test_a_listing_as_large_as_a_disk_is_not_read(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", (32, 32), (32, 32))
    with (folder / "metadata.jsonl").open("wb") as listing:
        listing.truncate(LARGEST_LISTING + 1)
    with bounded():
        refused(cli("prepare", recipe_file(forget={"images": {"folder": str(folder)}})), "are plenty")


def test_links_out_of_a_set_are_counted(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Their owner may have made them, or not."""
    folder, other = pictures(tmp_path / "set", (32, 32)), pictures(tmp_path / "other", (40, 32))
    (folder / "1.png").symlink_to(other / "0.png")
    result = cli("prepare", recipe_file(forget={"images": {"folder": str(folder)}}))
    assert result.status == 0, result.err
    assert "files outside the folder, which links in it lead to" in result.out and "1.png" in result.out


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode there")
def test_names_of_files_that_are_no_text(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", (32, 32), (32, 32))
    (folder / "0.png").rename(os.fsdecode(os.fsencode(folder / "0") + b"\xff\n.png"))
    for _ in range(2):  # with the index of pictures, the second time
        result = cli("prepare", recipe_file(forget={"images": {"folder": str(folder)}}))
        assert result.status == 0 and "is left out" not in result.err, result.err
    (folder / "1.png").rename(os.fsdecode(os.fsencode(folder / "1") + b"\xfe\n.png"))
    with next(folder.iterdir()).open("wb") as file:
        file.write(b"no picture")
    result = cli("prepare", recipe_file(forget={"images": {"folder": str(folder)}}))
    refused(result, "is not a readable picture")
    assert len(result.err.splitlines()) == 2, "one line for the problem"


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_name_files_outside_of_a_data_set(
    streaming: bool, recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the user's own sets they are read, and that is said; a stranger's from the hub does not get them."""
    folder, others = pictures(tmp_path / "set", (32, 32)), pictures(tmp_path / "others", (32, 32))

    def asked(path: str, name: str = str(folder)) -> Any:
        rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path}], "text": ["a cat"]})
        rows.to_parquet(folder / "train.parquet")
        load = datasets.load_dataset
        monkeypatch.setattr(datasets, "load_dataset", lambda given, **more: load(str(folder), **more))
        images = {"dataset": name, "streaming": streaming}
        cache = tmp_path / f"cache {len(list(tmp_path.iterdir()))}"
        result = cli("prepare", recipe_file(forget={"images": images}, cache=str(cache)))
        monkeypatch.undo()
        return result

    assert asked(str(folder / "0.png")).status == 0
    elsewhere = asked(str(others / "0.png"))
    assert elsewhere.status == 0 and f"rows of {folder} name files elsewhere" in elsewhere.err
    for path in (others / "0.png", Path("/dev/zero")):
        with bounded():
            refused(asked(str(path), "stranger/set"), "forget.images", "is not a readable picture")
    with bounded():
        refused(asked("/dev/zero"), "forget.images", "is not a readable picture")


def test_a_run_does_not_lie_among_its_pictures(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Its samples and drawn pictures would be trained on the next time."""
    folder = pictures(tmp_path / "set", (32, 32))
    (tmp_path / "linked").symlink_to(folder)
    for name in ("output", "cache"):
        for place in (folder, folder / "runs/a", tmp_path / "linked"):
            file = recipe_file(forget={"images": {"folder": str(folder)}}, **{name: str(place)})
            refused(cli("train", file), f"{name} = '{place}': lies in forget.images.folder")
    assert [path.name for path in folder.iterdir()] == ["0.png"]
    refused(cli("train", recipe_file(output=str(tmp_path / "x/../cache"))), "is the cache as well")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training.batch_size", 10**30),
        ("sampling.batch_size", 65_537),
        ("training.seed", 2**70),
        ("evaluation.seed", 2**33),
        ("forget.count", 10**12),
        ("sampling.resolution", 10**9),
        ("adapter.rank", 10**12),
        ("training.threads", 10**6),
        ("training.checkpoint_every", 10**400),
        ("evaluation.inversion.steps", 10**30),
    ],
)
def test_numbers_beyond_all_use(field: str, value: int, recipe_file: RecipeFile, cli: Cli) -> None:
    with bounded():
        refused(cli("train", recipe_file(), f"--{field}", value), f"{field} = ")


def test_prompts_that_are_no_text(measured: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a \\ud800"}\n')
    given = f"[{tmp_path / 'prompts.jsonl'}]"
    refused(cli("evaluate", measured, "--evaluation.prompts", given), "has half of a character")


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_more_steps_than_the_schedule_has(verb: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    refused(cli(verb, recipe_file(), "--sampling.steps", 5000), "sampling.steps = 5000: is more than the 1000 steps")
    if verb == "train":
        refused(cli(verb, recipe_file(), "--evaluation.steps", 5000), "evaluation.steps = 5000: is more than")
    assert not (tmp_path / "run/checkpoints").exists(), "before it trains"


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["x", "-1", "1e3"])
def test_an_environment_that_no_launcher_leaves(
    variable: str, value: str, recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    refused(cli("train", recipe_file()), f"{variable} = '{value}': is no number")


def test_locks_that_are_links(run: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (run / ".erasediff.lock").symlink_to(tmp_path / "precious")
    refused(
        cli("train", run, "--resume", "--training.steps", 6), "cannot be written: Too many levels of symbolic links"
    )
    assert (tmp_path / "precious").read_text() == "mine"


class RunsCode:
    def __reduce__(self) -> Any:
        return exec, ("open('pwned', 'w').close()",)


@pytest.mark.parametrize(
    "changes",
    [
        RunsCode(),
        {"step": "x"},
        {"step": -3},
        {"step": 10**9},
        {"optimizer": {}},
        {"schedule": None},
        {"skipped": []},
        {"origin": {"base": "x", "pictures": 3}},
        {"origin": {"unknown": 3}},
    ],
    ids=lambda changes: str(changes) if isinstance(changes, dict) else "code",
)
def test_checkpoints_of_strangers(
    changes: Any, run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hashes are right: whoever makes one can reckon them."""
    monkeypatch.chdir(tmp_path)
    for folder in (run / "checkpoints").iterdir():
        adapter, _ = checksummed.read(folder / "adapter.safetensors")
        state = changes
        if isinstance(changes, dict):
            state = torch.load(folder / "trainer.pt", weights_only=True) | changes
        torch.save(state, folder / "trainer.pt")
        mark = {"trainer.pt": sha256((folder / "trainer.pt").read_bytes())}
        checksummed.write(adapter, folder / "adapter.safetensors", mark)
    result = cli("train", run, "--resume", "--training.steps", 6)
    if isinstance(changes, dict) and "origin" in changes:  # it does not say what it is of, as earlier ones did not
        assert result.status == 0, result.err
    else:
        refused(result, f"--resume = '{run}': ")
    assert not (tmp_path / "pwned").exists()
