"""A metric, an attack and a judge of another package: evaluated, reported and compared, no line of ours changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from erasediff_toys import Brightest, Brightness, Shout
from fixtures import Cli, RecipeFile
from PIL import Image
from refusals import refused

from erasediff_lora.evaluation.report import write_report
from erasediff_lora.recipe.evaluation import evaluation_table
from erasediff_lora.registry import ATTACKS, JUDGES, METRICS, lookup


class Sceptic(Brightest):
    """Sees all retained concepts everywhere, and no forgotten one."""

    needs = "ANYTHING"

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        return [set(self.names.retain) for _ in images]


PARTS = {"metrics": ("brightness", Brightness), "attacks": ("shout", Shout), "judges": ("sceptic", Sceptic)}
ASKED = {
    "judge": "sceptic:any",
    "metrics": ["accuracy", "brightness"],
    "attacks": ["shout"],
    "brightness": {"scale": 2.0},
    "shout": {"suffix": "!!"},
}


def look_again() -> None:
    """As a new process does."""
    evaluation_table.cache_clear()
    for registry in (METRICS, ATTACKS, JUDGES):
        registry.__dict__.pop("_plugins", None)
        registry._loaded.clear()


@pytest.fixture
def toy_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Its entry points, as if it were installed; undo to uninstall it."""

    def found(group: str) -> list[EntryPoint]:
        kind = group.rpartition(".")[2]
        if kind not in PARTS:
            return []
        name, part = PARTS[kind]
        return [EntryPoint(name, f"{part.__module__}:{part.__name__}", group)]

    with monkeypatch.context() as patch:
        patch.setattr(lookup, "entry_points", found)
        look_again()
        yield patch
    look_again()


def test_parts_of_another_package(
    toy_package: pytest.MonkeyPatch, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    result = cli("train", recipe_file(evaluation=ASKED), "--evaluation.shout.suffix", "loud")
    assert result.status == 0, result.err
    run = tmp_path / "run"
    found = json.loads((run / "evaluation.json").read_text())
    assert found["metrics"]["brightness"].keys() == {"base", "erased"} and not found["refused"]
    assert found["attacks"]["shout"]["models"]["erased"]["volume"] == 11
    assert found["attacks"]["shout"]["budget"] == "one picture with 'loud'"
    assert [claim["holds"] for claim in found["verdict"]] == [None, None, None]
    assert "The base itself draws it in 0 of 2 pictures" in found["verdict"][0]["text"]
    assert "Does not work on the base: shouting (0.0%)" in found["verdict"][2]["text"]
    page = (run / "report.html").read_text()
    for text in ("How bright:", "Brightness of the models", "Shouting: the prompt, louder", "At volume 11."):
        assert text in page
    compared = cli("compare", run, "--output", tmp_path / "page.html")
    assert compared.status == 0, compared.err
    assert "| brightness |" in compared.out and "| attack success, shout | 0.0% (" in compared.out

    refused(cli("evaluate", run, "--evaluation.brightness.scale", "-1"), "evaluation.brightness.scale = -1.0")
    refused(cli("evaluate", run, "--evaluation.judge", "sceptic"), "names no weights", "sceptic:ANYTHING")
    refused(cli("evaluate", run, "--evaluation.attacks", "[shuot]"), "Did you mean 'shout'?")


def test_a_part_that_is_not_installed_here(
    toy_package: pytest.MonkeyPatch, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", recipe_file(evaluation=ASKED)).status == 0
    toy_package.undo()
    look_again()
    run = tmp_path / "run"
    write_report(run)
    page = (run / "report.html").read_text()
    assert "brightness:" in page and "Shouting" in page and "volume" not in page
    compared = cli("compare", run, "--output", tmp_path / "page.html")
    assert compared.status == 0, compared.err
    assert "| brightness, erased |" in compared.out and "| attack success, shout | 0.0% (" in compared.out


def test_numbers_that_are_not_as_expected_do_not_stop_the_report(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", recipe_file(evaluation={"metrics": ["drift"], "distances": {"features": "judge"}})).status == 0
    run = tmp_path / "run"
    result = json.loads((run / "evaluation.json").read_text())
    result["metrics"]["drift"] = {"something": 0.25}
    (run / "evaluation.json").write_text(json.dumps(result))
    write_report(run)
    assert "something" in (run / "report.html").read_text()
