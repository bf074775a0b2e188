"""What near concepts lost, what became what, and quality without real pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import Cli, RecipeFile
from PIL import Image, ImageFilter
from refusals import refused
from tiny import tiny_classifier, tiny_clip

from erasediff_lora.data.prompts import Prompt
from erasediff_lora.evaluation.metrics.accuracy import accuracy
from erasediff_lora.evaluation.metrics.quality import clip_iqa, total_variation
from erasediff_lora.evaluation.pictures import Drawn


class Painted:
    """Sees in a picture what its red and its green say."""

    names = ("cat", "dog", "lion", "etching", "photo")

    @property
    def labels(self) -> set[str]:
        return set(self.names)

    def recognise(self, images: list[Image.Image]) -> list[set[str]]:
        return [{self.names[value] for value in image.getpixel((0, 0))[:2]} for image in images]  # type: ignore[index]


def drawn(asked: str, style: str, *seen: tuple[str, str]) -> list[Drawn]:
    prompt = Prompt(f"{style} of {asked}", asked, {"style": style})
    colours = [(Painted.names.index(name), Painted.names.index(how), 0) for name, how in seen]
    return [Drawn(prompt, seed, Image.new("RGB", (2, 2), colour)) for seed, colour in enumerate(colours)]


def test_domains_and_confusion_are_counted_for_each_concept() -> None:
    forget = (
        drawn("cat", "photo", ("cat", "photo"), ("cat", "photo")),
        drawn("cat", "photo", ("dog", "photo"), ("lion", "photo")),
    )
    base = drawn("dog", "etching", ("dog", "etching"), ("dog", "etching")) + drawn("lion", "photo", ("lion", "photo"))
    after = drawn("dog", "etching", ("dog", "photo"), ("cat", "etching")) + drawn("lion", "photo", ("lion", "photo"))
    found = accuracy(Painted(), *forget, base, after, {"cat", "dog", "lion"})
    dog, lion, cat = (found["per_concept"][name] for name in ("dog", "lion", "cat"))
    assert dog["in_domain_retain_accuracy"] == 0.5 and dog["in_domain_retain_accuracy_base"] == 1.0
    assert dog["cross_domain_retain_accuracy"] == 0.5 and dog["cross_domain_retain_accuracy_base"] == 1.0
    assert dog["retain_accuracy"] == 0.0, "both in one picture"
    assert lion["in_domain_retain_accuracy"] == lion["cross_domain_retain_accuracy"] == 1.0
    assert (cat["became"], cat["became_base"]) == ({"dog": 0.5, "lion": 0.5}, {"cat": 1.0})
    assert (dog["became"], dog["became_base"]) == ({"dog": 0.5, "cat": 0.5}, {"dog": 1.0})


def test_the_report_has_the_matrix_to_save(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    judge = tiny_classifier(tmp_path / "judge", ["cat", "dog", "car"], favourite="dog")
    asked = {"judge": f"transformers:{judge}", "metrics": ["accuracy", "quality"]}
    assert cli("train", recipe_file(evaluation=asked)).status == 0
    page = (tmp_path / "run/report.html").read_text()
    tables = [
        base64.b64decode(text).decode() for text in re.findall(r"data:text/csv;charset=utf-8;base64,([^\"]+)", page)
    ]
    (matrix,) = [text for text in tables if "asked for,drawn by" in text]
    rows = list(csv.DictReader(io.StringIO(matrix.removeprefix("\ufeff"))))
    assert rows[0]["asked for"] == rows[1]["asked for"] == "cat"
    assert [row["drawn by"] for row in rows[:2]] == ["base", "with adapter"]
    assert rows[1]["dog"] == "100.0%" and rows[1]["other"] == "0"
    found = json.loads((tmp_path / "run/evaluation.json").read_text())["metrics"]["quality"]
    assert found["total_variation"].keys() == {"base", "erased"} and "clip_iqa" not in found
    assert "Quality of retained pictures" in page
    told = cli("compare", tmp_path / "run", "--output", tmp_path / "c.html")
    assert "total variation of retained pictures, base" in told.out


def test_total_variation_is_the_mean_difference_of_neighbours() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8))
    pixels = np.asarray(noise, dtype=float)
    steps = np.abs(np.diff(pixels, axis=0)).sum() + np.abs(np.diff(pixels, axis=1)).sum()
    assert total_variation([noise]) == pytest.approx(steps / (15 * 12 * 3 + 16 * 11 * 3), rel=1e-5)
    assert total_variation([noise.filter(ImageFilter.BLUR)]) < 0.7 * total_variation([noise])


def test_clip_iqa_is_the_share_of_good_against_bad(tmp_path: Path) -> None:
    from erasediff_lora.evaluation.clip_model import Clip

    weights = tiny_clip(tmp_path / "clip")
    pictures = [Image.fromarray(np.full((40, 40, 3), value, np.uint8)) for value in (20, 200)]
    pictures.append(Image.new("RGB", (32, 48), "red"))
    clip = Clip(str(weights), "x", "x")
    one, texts = clip.images(pictures), clip.texts(["Good photo.", "Bad photo."])
    cosines = torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    wanted = (100 * cosines).softmax(dim=1)[:, 0].mean()
    assert clip_iqa(str(weights), pictures) == pytest.approx(float(wanted), abs=2e-3)


def test_weights_that_are_not_there(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"metrics": ["quality"], "quality": {"weights": str(tmp_path / "none")}}
    refused(
        cli("train", recipe_file(evaluation=asked)), "evaluation.quality.weights", "there is no such file or folder"
    )
    assert not (tmp_path / "run/training_log.jsonl").exists()
