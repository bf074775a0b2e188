"""What strangers made, other than adapters and recipes: run folders, evaluations, data sets. Opened, never trusted."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from fixtures import Cli, RecipeFile, Result
from hostile_files import RUNS, SETS
from measured_run import accuracy, edit, measure
from picture_folder import pictures
from refusals import refused

from erasediff_lora.data.captions import LARGEST_LISTING
from erasediff_lora.evaluation.report import write_report

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
