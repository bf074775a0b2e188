"""Counts of a stubbed classifier, which reads a picture's names off its colour."""

from __future__ import annotations

import pytest
from PIL import Image

from erasediff_lora.data.prompts import Prompt
from erasediff_lora.evaluation.pictures import Drawn
from erasediff_lora.evaluation.quick import judge_pictures

NAMES = {
    (1, 0, 0): {"cat", "line"},
    (2, 0, 0): {"heart", "line"},
    (3, 0, 0): {"heart", "color"},
    (4, 0, 0): {"sofa", "line"},
    (5, 0, 0): {"dog", "line"},
}


class Stub:
    labels = frozenset({"cat", "heart", "dog", "sofa", "line", "color"})

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        return [NAMES[image.getpixel((0, 0))] for image in images]


def drawn(concept: str, *reds: int) -> list[Drawn]:
    prompt = Prompt(f"a line drawing of a {concept}", concept, {"style": "line"})
    return [Drawn(prompt, seed, Image.new("RGB", (2, 2), (red, 0, 0))) for seed, red in enumerate(reds)]


def test_shares_and_what_the_concept_became() -> None:
    result = judge_pictures(
        Stub(),  # type: ignore[arg-type]
        forget_before=drawn("cat", 1, 1, 2),
        forget_after=drawn("cat", 2, 3, 4, 1),
        retain_before=drawn("heart", 2, 2) + drawn("dog", 5, 5),
        retain_after=drawn("heart", 2, 3) + drawn("dog", 5, 1),
        concepts={"cat", "heart", "dog"},
    )
    assert result["unlearning_accuracy"] == pytest.approx(3 / 4)
    assert result["unlearning_accuracy_base"] == pytest.approx(1 / 3)
    assert result["retain_accuracy"] == pytest.approx(2 / 4), "the right concept in another style is not retained"
    assert result["retain_accuracy_base"] == 1.0
    assert result["forget_prompt_attributes_accuracy"] == pytest.approx(3 / 4)
    assert result["per_concept"] == {
        "cat": {
            "unlearning_accuracy": pytest.approx(3 / 4),
            "unlearning_accuracy_base": pytest.approx(1 / 3),
            "became": {"heart": 0.5, "other": 0.25, "cat": 0.25},
        },
        "heart": {"retain_accuracy": 0.5, "retain_accuracy_base": 1.0},
        "dog": {"retain_accuracy": 0.5, "retain_accuracy_base": 1.0},
    }
