"""Neighbours of what is forgotten are measured apart from the rest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures import Cli
from measured_run import accuracy, measure
from tiny import tiny_base_recipe, tiny_classifier

from erasediff_lora.cli import main
from erasediff_lora.evaluation.verdict import read_judged

SAME = {"lost": 0, "gained": 0}
NEAR = {"cat": ["lion", "yeti", "dog"], "clock": ["Dog"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """By a judge who sees dogs everywhere, and has never heard of yetis."""
    root = tmp_path_factory.mktemp("near")
    judge = tiny_classifier(root / "judge", ["cat", "clock", "dog", "lion", "car", "bus"], favourite="dog")
    file = tiny_base_recipe(
        tiny_base,
        root,
        forget={"concepts": ["cat", "clock"]},
        retain={"concepts": ["dog", "car", "bus"], "neighbours": NEAR},
        evaluation={"judge": f"transformers:{judge}", "metrics": ["accuracy"], "retain_samples": 15},
        training={"steps": 1},
    )
    assert main(["train", str(file)]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return found


def test_near_and_far_are_told_apart(result: dict[str, Any]) -> None:
    found = result["metrics"]["accuracy"]["neighbours"]
    assert (
        found["near"] == {"retain_accuracy": 0.5, "retain_accuracy_base": 0.5, "pictures": 6, "pictures_base": 6} | SAME
    )
    assert (
        found["far"] == {"retain_accuracy": 0.0, "retain_accuracy_base": 0.0, "pictures": 6, "pictures_base": 6} | SAME
    )
    counts = {"pictures": 3, "pictures_base": 3} | SAME
    assert found["words"] == {
        "lion": {"near_to": ["cat"], "retain_accuracy": 0.0, "retain_accuracy_base": 0.0} | counts,
        "dog": {"near_to": ["cat", "clock"], "retain_accuracy": 1.0, "retain_accuracy_base": 1.0} | counts,
    }
    assert (found["unjudged"], found["undrawn"]) == (["yeti"], [])
    assert result["metrics"]["accuracy"]["counted"]["retain"] == 12
    assert result["recipe"]["retain"]["concepts"] == ["dog", "car", "bus", "lion", "yeti"]


def test_the_report_and_the_verdict_say_so(run: Path, result: dict[str, Any]) -> None:
    kept = result["verdict"][1]["text"]
    assert "Near to what is forgotten: 50.0% (95% interval 19% to 81%) of 6 pictures (base: 50.0%); the rest: 0" in kept
    page = re.sub(r"<td [^>]*>", "<td>", (run / "report.html").read_text())
    assert "Pinpoint retention" in page and "<td>near</td>" in page and "<td>the rest</td>" in page
    assert "Left out: the judge has no label for yeti." in page
    assert "<td>dog</td><td>cat, clock</td>" in "".join(page.split("\n"))


def test_comparisons_have_it(run: Path, cli: Cli, tmp_path: Path) -> None:
    out = cli("compare", run, "--output", tmp_path / "c.html").out
    assert "pinpoint retention of the base" in out


def test_without_neighbours_there_is_nothing_of_it(run: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("evaluate", run, "--retain.neighbours", "0", "--output", tmp_path / "other").status == 0
    found = json.loads((tmp_path / "other" / "evaluation.json").read_text())
    assert "neighbours" not in found["metrics"]["accuracy"]
    assert "Near to what" not in found["verdict"][1]["text"]


def test_a_lost_neighbour_fails_the_verdict_by_name(run: Path, tmp_path: Path) -> None:
    def shares(kept: float) -> dict[str, Any]:
        return {"retain_accuracy": kept, "retain_accuracy_base": 1.0, "pictures": 40, "pictures_base": 40}

    copy = shutil.copytree(run, tmp_path / "copy")
    words = {"lion": {"near_to": ["cat"]} | shares(0.2)}
    told = {"near": shares(0.2), "far": shares(1.0), "words": words, "unjudged": [], "undrawn": []}
    measure(copy, accuracy(per_concept={"lion": shares(0.2)}) | {"neighbours": told})
    kept = read_judged(copy)["verdict"][1]
    assert kept["holds"] is False
    assert "Lost: lion 8 of 40 pictures (base: 100.0%)" in kept["text"]
    assert "Near to what is forgotten: 20.0%" in kept["text"] and "the rest: 100.0%" in kept["text"]
