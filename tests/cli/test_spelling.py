"""What people type for the words of the command line."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.cli import main


@pytest.mark.parametrize("option", ["--dry_run", "--dry-run"])
def test_options_with_dashes_and_underscores(option: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    assert cli("train", recipe_file(), "--training.learning-rate", "0.001").status == 0
    result = cli("publish", tmp_path / "run", "--repo", "me/x", option, "--base-model=own/er")
    assert result.status == 0, result.err
    assert "base_model: own/er" in (tmp_path / "run/hub/README.md").read_text()
    assert "learning_rate: 0.001" in (tmp_path / "run/recipe.yaml").read_text()


def test_the_demos_concept_needs_no_option(cli: Cli) -> None:
    refused(cli("demo", "clok"), "--concept = 'clok': the demo model does not know it. Did you mean 'clock'?")
    refused(cli("demo", "cat", "--concept", "clock"), "--concept = 'clock': is not 'cat'. Name one concept.")
    refused(cli("demo", "clock", "cat"), "argument = 'cat': is not expected here")
    for words in (["--concept", "cat"], ["cat"], []):
        result = cli("demo", *words, "--output", "somewhere", "--sampling.steps", "0")
        refused(result, "1 problem", "sampling.steps = 0")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--sampling.negative_prompt", "x"], "`erasediff-lora recipes fields sampling` lists what there is."),
        (["--nonsense", "x"], "`erasediff-lora recipes fields` lists what there is."),
        (["--evaluation.inversion.step", "3"], "Did you mean 'evaluation.inversion.steps'?"),
        (["--trainig.steps", "3"], "Did you mean 'training.steps'?"),
        (["--evaluation.attacks", "inversion"], "evaluation.attacks = 'inversion': is no list. Write [inversion]."),
        (["--evaluation.judge_labels", "cat"], "evaluation.judge_labels = 'cat': is no table. Write {NAME: VALUE}."),
        (["--evaluation.judge_labels", "{cat: tom}"], "evaluation.judge_labels.cat = 'tom': is no list. Write [tom]."),
    ],
)
def test_fields_and_values(words: list[str], told: str, recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("train", recipe_file(), *words), told)


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        ("clip:/nowhere/clip", "there is no such file or folder. Point it at a local folder"),
        ("transformers:~/nowhere", "there is no such file or folder."),
        ("classifier:a/b/c.safetensors", "there is no such file or folder."),
        ("demo:x", "says more than demo, which has weights of its own. Write demo."),
        ("nudenet:x", "says more than nudenet, which has weights of its own. Write nudenet."),
    ],
)
def test_judges_that_are_not_there(judge: str, told: str, recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("train", recipe_file(evaluation={"judge": judge})), f"evaluation.judge = '{judge}': {told}")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_any_terminal(encoding: str, recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ""
    for words in (["recipes", "fields"], ["plan", str(recipe_file())], ["train", "--help"]):
        made = io.BytesIO()
        terminal = io.TextIOWrapper(made, encoding=encoding, write_through=True)
        with monkeypatch.context() as patch, contextlib.suppress(SystemExit):
            patch.setattr(sys, "stdout", terminal)
            main(words)
        shown += made.getvalue().decode(encoding)
    assert "--training.steps" in shown and ("GiB" in shown or "MiB" in shown)
    if encoding == "ascii":
        assert "..." in shown and "lambda" in shown
