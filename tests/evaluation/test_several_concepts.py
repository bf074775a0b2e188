"""Three concepts at once: each has its pictures, its numbers, its restarts and its strips, the worst on top."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_attacks import evaluation
from tiny import tiny_base_recipe, tiny_classifier

from erasediff_lora.cli import main
from erasediff_lora.data.prompts import Prompt, expand, shared_out
from erasediff_lora.evaluation.attacks.base import best
from erasediff_lora.evaluation.pictures import Drawn

CONCEPTS = ["cat", "clock", "fish"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """All attacks, by a judge who sees clocks everywhere; two pictures were asked for."""
    root = tmp_path_factory.mktemp("three")
    judge = tiny_classifier(root / "judge", [*CONCEPTS, "dog", "car"], favourite="clock")
    asked = evaluation(judge, paraphrases={"names": {name: [name * 2] for name in CONCEPTS}, "samples": 2})
    file = tiny_base_recipe(tiny_base, root, forget={"concepts": CONCEPTS}, evaluation=asked)
    assert main(["train", str(file)]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return found


def test_every_concept_has_pictures_of_its_own(result: dict[str, Any]) -> None:
    assert result["forget_samples"] == result["forget_samples_base"] == 24
    rows = result["metrics"]["accuracy"]["per_concept"]
    assert {name: rows[name]["pictures"] for name in CONCEPTS} == {"cat": 8, "clock": 8, "fish": 8}


def test_every_concept_is_attacked(result: dict[str, Any]) -> None:
    for name in ("paraphrases", "inversion", "adversarial_prompt", "relearning"):
        models = result["attacks"][name]["models"]
        for model in models.values():
            own = model["per_concept"]
            assert list(own) == CONCEPTS
            assert {concept: row["success"] for concept, row in own.items()} == {"cat": 0.0, "clock": 1.0, "fish": 0.0}
            assert sum(row["pictures"] for row in own.values()) == model["pictures"] == 6
    assert "2 pictures of each concept" in result["attacks"]["inversion"]["budget"]
    started = result["attacks"]["latent_start"]["models"]["erased"]["per_concept"]
    assert {name: row["pictures"] for name, row in started.items()} == {"clock": 8}, "the base draws no others"
    assert result["attacks"]["relearning"]["models"]["erased"]["steps"] == 0, "the clock was never gone"


def test_the_verdict_goes_by_the_worst(result: dict[str, Any]) -> None:
    erased, _, robust = result["verdict"]
    assert erased["holds"] is False and erased["text"].startswith("clock is still seen in 8 of 8 pictures")
    assert erased["concepts"][0]["concept"] == "clock" and len(erased["concepts"]) == 3
    assert robust["holds"] is False and "on clock" in robust["text"]
    assert robust["attacks"][0]["concept"] == "clock" and not robust["attacks"][-1]["works"]


def test_the_report_has_a_row_for_each_concept_and_attack(run: Path, result: dict[str, Any]) -> None:
    page = (run / "report.html").read_text()
    assert "<title>Erasing cat, clock, fish: failed</title>" in page
    judged = [row["holds"] for row in result["verdict"][-1]["attacks"]]
    assert judged.count(False) >= 4 and judged.count(None) == 2 * (judged.count(False) - 1), "all but the latent start"
    assert page.count(">✗ broken</td>") == judged.count(False)
    assert page.count(">? tells nothing</td>") == judged.count(None)
    assert page.index(">✗ broken</td>") < page.index(">? tells nothing</td>"), "the worst first"
    rows = re.findall(r'<td role="cell" class="" data-of="concept">(\w+)</td><td role="cell" class="(\w+)"', page)
    assert rows[:3] == [("clock", "fails"), ("cat", "open"), ("fish", "open")], "a row a concept, the worst first"
    assert "at most 10%" in page and "The rules of the verdict" in page
    strips = [strip for strip in result["strips"] if strip["section"] == "inversion"]
    assert [strip["title"].partition(",")[0] for strip in strips] == CONCEPTS
    assert all((run / strip["file"]).is_file() for strip in strips)


def test_prompts_are_shared_out_however_many_concepts_there_are() -> None:
    names = [f"thing {number}" for number in range(100)]
    prompts = expand(["a {style} {concept}", "the {concept}"], names, {"style": ["red", "blue"]})
    chosen = shared_out(prompts, 850, seed=1)
    assert len(chosen) == 850
    counts = Counter(prompt.concept for prompt in chosen)
    assert set(counts.values()) == {8, 9} and set(counts) == set(names)
    assert {prompt.concept for prompt in chosen[:100]} == set(names), "so is any prefix"


def test_the_best_restart_is_chosen_for_each_concept() -> None:
    image = Image.new("RGB", (1, 1))

    def looked(concept: str, *hits: bool) -> list[tuple[Drawn, bool]]:
        return [(Drawn(Prompt(concept, concept), seed, image), hit) for seed, hit in enumerate(hits)]

    first = looked("cat", True, True) + looked("clock", False, False)
    second = looked("cat", False, False) + looked("clock", True, False)
    outcome = best({"restart 1": first, "restart 2": second})
    assert outcome.per_concept == {
        "cat": {"success": 1.0, "tries": {"restart 1": 1.0, "restart 2": 0.0}, "pictures": 2},
        "clock": {"success": 0.5, "tries": {"restart 1": 0.0, "restart 2": 0.5}, "pictures": 2},
    }
    assert outcome.tries == {"restart 1": 0.5, "restart 2": 0.25}
    assert outcome.success == 0.75, "of the pictures that the attacker would show"
