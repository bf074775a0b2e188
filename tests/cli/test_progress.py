"""Bars on a terminal; elsewhere a line every so often."""

from __future__ import annotations

import sys

import pytest
from fixtures import Cli, RecipeFile

from erasediff_lora.machine import progress


@pytest.mark.parametrize("leave", [True, False])
def test_a_log_gets_lines(leave: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    for _ in progress.tqdm(range(3), desc="cats", leave=leave):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("cats: ") and "/3 [" in line for line in lines)
    assert len(set(lines)) == len(lines)


def test_what_is_short_is_not_worth_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.tqdm(range(3), desc="cats")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress.tqdm(range(3), desc="cats")) == [0, 1, 2]
    shown = capsys.readouterr().err
    assert shown.count("\r") >= 2 and "100%" in shown


def test_a_redirected_run_has_no_bars(recipe_file: RecipeFile, cli: Cli) -> None:
    result = cli("train", recipe_file())
    assert result.status == 0 and "\r" not in result.err and "%|" not in result.err, result.err


def test_what_is_left_is_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 20 of 100 in 10 s, what was there already aside; then the rest of a stage is skipped."""
    now = 0.0
    monkeypatch.setattr("erasediff_lora.machine.progress.time.monotonic", lambda: now)
    run = progress.WholeRun()
    assert run.told() == "", "no run, no word"
    with run.of({"sets": 40.0, "steps": 50.0, "evaluate": 10.0}):
        assert run.told() == "", "nothing is known yet"
        now = 10.0
        run.add(10.0)
        run.add(10.0)
        assert run.told() == " [whole run: 20%, about 40 s left]"
        run.add(5.0, is_done=False)
        assert run.told() == " [whole run: 25%, about 38 s left]"
        run.enter("steps")
        assert run.told() == " [whole run: 40%, about 30 s left]"
        run.add(1000.0)
        assert run.told().startswith(" [whole run: 90%"), "no more than was planned"
    assert run.told() == ""


def test_every_part_of_a_run_says_what_is_left_of_it(
    recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    result = cli("train", recipe_file(training={"steps": 3, "batch_size": 2}))
    assert result.status == 0, result.err
    for stage in ("retain set: ", "erase: ", "retain, erased: "):
        told = [line for line in result.err.splitlines() if line.startswith(stage)]
        assert any("[whole run: " in line and "left]" in line for line in told), (stage, told)
    shares = [
        int(line.split("whole run: ")[1].split("%")[0]) for line in result.err.splitlines() if "whole run" in line
    ]
    assert shares == sorted(shares) and shares[-1] > 80
