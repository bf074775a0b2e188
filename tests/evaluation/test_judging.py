"""Counts of a stubbed classifier, which reads a picture's names off its colour."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from erasediff_lora.data.prompts import Prompt
from erasediff_lora.evaluation.metrics.accuracy import accuracy
from erasediff_lora.evaluation.pictures import Drawn

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
        return [NAMES[tuple(np.asarray(image)[0, 0])] for image in images]


def drawn(concept: str, *reds: int) -> list[Drawn]:
    prompt = Prompt(f"a line drawing of a {concept}", concept, {"style": "line"})
    return [Drawn(prompt, seed, Image.new("RGB", (2, 2), (red, 0, 0))) for seed, red in enumerate(reds)]


def test_shares_and_what_the_concept_became() -> None:
    result = accuracy(
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
    half = {
        "retain_accuracy": 0.5, "retain_accuracy_base": 1.0, "pictures": 2, "pictures_base": 2, "lost": 1, "gained": 0,
        "in_domain_retain_accuracy_base": 1.0, "cross_domain_retain_accuracy_base": 1.0,
    }  # fmt: skip
    in_domain, cross_domain = "in_domain_retain_accuracy", "cross_domain_retain_accuracy"
    assert result["per_concept"] == {
        "cat": {
            "unlearning_accuracy": pytest.approx(3 / 4),
            "unlearning_accuracy_base": pytest.approx(1 / 3),
            "pictures": 4,
            "pictures_base": 3,
            "became": {"heart": 0.5, "other": 0.25, "cat": 0.25},
            "became_base": {"cat": pytest.approx(2 / 3), "heart": pytest.approx(1 / 3)},
        },
        "heart": half | {in_domain: 1.0, cross_domain: 0.5} | {"became": {"heart": 1.0}, "became_base": {"heart": 1.0}},
        "dog": half
        | {in_domain: 0.5, cross_domain: 1.0}
        | {"became": {"dog": 0.5, "cat": 0.5}, "became_base": {"dog": 1.0}},
    }
    style = {
        "retain_accuracy": 0.75, "retain_accuracy_base": 1.0, "pictures": 4, "pictures_base": 4, "lost": 1, "gained": 0
    }  # fmt: skip
    assert (result["lost"], result["gained"]) == (2, 0)
    assert result["per_attribute"] == {"line": style}
    assert result["in_domain_retain_accuracy"] == 3 / 4, "the right concept, in whatever style"
    assert result["cross_domain_retain_accuracy"] == 3 / 4, "the right style, of whatever concept"
    assert result["counted"] == {"forget": 4, "forget_base": 3, "retain": 4}


def test_prompts_that_name_nothing_the_judge_knows_are_not_counted() -> None:
    unknown = [Drawn(Prompt("a photo of a unicorn", "unicorn", {}), 0, Image.new("RGB", (2, 2), (1, 0, 0)))]
    forget = drawn("cat", 1)
    result = accuracy(Stub(), forget, forget, unknown + drawn("dog", 5), unknown + drawn("dog", 5), {"cat", "dog"})  # type: ignore[arg-type]
    assert result["retain_accuracy"] == 1.0 and result["counted"]["retain"] == 1
    assert "unicorn" not in result["per_concept"]
    nothing = accuracy(Stub(), forget, forget, unknown, unknown, {"cat"})  # type: ignore[arg-type]
    assert nothing["retain_accuracy"] is None
