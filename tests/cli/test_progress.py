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
