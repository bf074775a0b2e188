"""The hub folder and its upload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from adapters import draw, pipeline
from fixtures import Cli
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from PIL import Image
from refusals import refused
from safetensors.torch import load_file

from erasediff_lora.adapter import formats
from erasediff_lora.publishing import hub as publishing


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A run of a few steps; each test gets a copy."""
    from tiny import tiny_values

    from erasediff_lora.cli import main

    root = tmp_path_factory.mktemp("publish")
    (root / "recipe.yaml").write_text(yaml.safe_dump(tiny_values(tiny_base, root)))
    assert main(["train", str(root / "recipe.yaml")]) == 0
    return root / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_dry_run_leaves_a_folder_that_every_program_can_load(run: Path, tiny_base: Path, cli: Cli) -> None:
    result = cli("publish", run, "--repo", "me/erase-cat", "--dry_run", "--base_model", "owner/base")
    assert result.status == 0, result.err
    hub = run / "hub"
    assert {str(p.relative_to(hub)) for p in hub.rglob("*") if p.is_file()} == {
        "README.md",
        "pytorch_lora_weights.safetensors",
        "erase-cat.safetensors",
        "peft/adapter_model.safetensors",
        "peft/adapter_config.json",
        "recipe.yaml",
        "evaluation.json",
        "before_after.png",
        *(
            f"images/{p['picture'].split('/')[1]}"
            for p in json.loads((hub / "evaluation.json").read_text())["pictures"]
        ),
    }
    pipe = pipeline(tiny_base)
    pipe.load_lora_weights(hub)
    first = draw(pipe)
    pipe = pipeline(tiny_base)
    pipe.load_lora_weights(hub, weight_name="erase-cat.safetensors")
    assert bool((draw(pipe) == first).all())
    one, two = (formats.read(hub / name) for name in ("erase-cat.safetensors", "peft"))
    assert one.provenance == two.provenance == formats.read(run).provenance


def test_card(run: Path, cli: Cli) -> None:
    assert cli("publish", run, "--repo", "me/erase-cat", "--dry_run", "--base_model", "owner/base").status == 0
    card = ModelCard.load(run / "hub/README.md")
    data = card.data.to_dict()
    assert data["base_model"] == "owner/base" and data["base_model_relation"] == "adapter"
    assert data["library_name"] == "diffusers" and data["license"] == "creativeml-openrail-m"
    assert {"text-to-image", "diffusers", "lora", "template:sd-lora", "erasediff", "concept-erasure"} <= set(
        data["tags"]
    )
    for entry in data["widget"]:
        picture = Image.open(run / "hub" / entry["output"]["url"])
        assert picture.size == (64, 32), "base and erased side by side"
    assert {entry["text"] for entry in data["widget"]} == {"a photo of a cat", "a photo of a dog", "a photo of a car"}
    for words in (
        'pipe.load_lora_weights("me/erase-cat", weight_name="pytorch_lora_weights.safetensors"',
        "put `erase-cat.safetensors` into `models/loras`",
        "<lora:erase-cat:1>",
        "No classifier judged the pictures",
        formats.read(run).provenance.base_fingerprint,
        "Intended use and limits",
    ):
        assert words in card.text
    assert "None" not in card.text and "{{" not in card.text
    assert 'from_pretrained("owner/base")' in card.text and "hf download me/erase-cat" in card.text


def test_card_states_the_measured_numbers(run: Path, cli: Cli) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text()) | {"judge": "demo"}
    evaluation["metrics"]["accuracy"] = {
        "unlearning_accuracy": 0.987,
        "unlearning_accuracy_base": 0.012,
        "retain_accuracy": 0.954,
        "retain_accuracy_base": 0.961,
        "counted": {"forget": 20, "forget_base": 10, "retain": 30},
        "per_concept": {
            "cat": {"unlearning_accuracy": 0.987, "became": {"dog": 0.9, "other": 0.1}},
            "dog": {"retain_accuracy": 0.9, "became": {"dog": 1.0}},
        },
    }
    evaluation["attacks"]["inversion"] = {
        "title": "Concept inversion: a new word",
        "budget": "2 restarts",
        "models": {"erased": {"success": 0.432}, "base": {"success": 0.995}},
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert cli("publish", run, "--repo", "me/erase-cat", "--dry_run").status == 0
    text = (run / "hub/README.md").read_text()
    assert "| 1.2% | 98.7% | 20 |" in text and "| 96.1% | 95.4% | 30 |" in text
    assert "In place of cat the judge sees: dog 90.0%, other 10.0%." in text and "In place of dog" not in text
    assert "| Concept inversion: a new word | 43.2% | 99.5% | 2 restarts |" in text
    assert "2 steps" in text and "guidance 2.0" in text


def test_nothing_local_and_no_training_image_leaves_the_machine(run: Path, tiny_base: Path, cli: Cli) -> None:
    result = cli("publish", run, "--repo", "me/erase-cat", "--dry_run")
    assert "the base has no hub id" in result.err
    private = [str(tiny_base.parent), str(run), str(Path.home())]
    for file in (run / "hub").rglob("*"):
        if file.is_file():
            assert not [path for path in private if path.encode() in file.read_bytes()], file
    assert not list((run / "hub").glob("*_set.png"))
    recipe = yaml.safe_load((run / "hub/recipe.yaml").read_text())
    assert recipe["model"]["base"] == "tiny" and "output" not in recipe and "cache" not in recipe

    assert cli("publish", run, "--repo", "me/erase-cat", "--dry_run", "--training_images").status == 0
    assert {p.name for p in (run / "hub").glob("*_set.png")} == {"forget_set.png", "retain_set.png"}


@pytest.mark.parametrize(("pictures", "size"), [("after", (32, 32)), ("none", None)])
def test_pictures_of_the_base_can_be_left_out(pictures: str, size: Any, run: Path, cli: Cli) -> None:
    result = cli("publish", run, "--repo", "me/x", "--dry_run", "--pictures", pictures)
    assert result.status == 0, result.err
    images = list((run / "hub").rglob("*.png"))
    assert {Image.open(image).size for image in images} == ({size} if size else set())
    assert "before_after" not in (run / "hub/README.md").read_text()


def test_an_adapter_without_a_run(tmp_path: Path, tiny_base: Path, cli: Cli) -> None:
    from adapters import random_adapter

    formats.write(random_adapter(tiny_base), tmp_path / "a", "kohya")
    result = cli("publish", tmp_path / "a", "--repo", "me/x", "--dry_run", "--license", "mit")
    assert result.status == 0, result.err
    assert "states no numbers and shows no pictures" in result.err
    card = ModelCard.load(tmp_path / "a/hub/README.md")
    assert card.data.license == "mit" and "Nothing was measured." in card.text


class Hub:
    """Stands in for the hub's API and notes what it is asked."""

    def __init__(self, existing: bool | None = None, error: Exception | None = None) -> None:
        self.existing, self.error = existing, error
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self) -> Hub:
        return self

    def repo_info(self, repo: str) -> Any:
        if self.error:
            raise self.error
        if self.existing is None:
            raise RepositoryNotFoundError("404", response=Response())  # type: ignore[arg-type]
        return type("Info", (), {"private": self.existing})()

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append(("upload", repo_id, sorted(p.name for p in Path(folder_path).iterdir())))


class Response:
    headers: ClassVar[dict[str, str]] = {}
    status_code = 404
    request = None


@pytest.mark.parametrize("public", [False, True])
def test_upload_is_private_unless_asked(public: bool, run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    result = cli("publish", run, "--repo", "me/erase-cat", *(["--public"] if public else []))
    assert result.status == 0, result.err
    assert hub.calls[0] == ("create", "me/erase-cat", not public)
    assert hub.calls[1][:2] == ("upload", "me/erase-cat") and "README.md" in hub.calls[1][2]
    assert f"https://huggingface.co/me/erase-cat ({'public' if public else 'private'})" in result.out


def test_upload_refusals_name_the_way_out_and_no_token(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_abcdefghijklmnopqrstuvwxyz"
    monkeypatch.setenv("HF_TOKEN", token)
    for hub, words in (
        (Hub(existing=False), "exists and is public. Add --public"),
        (Hub(error=LocalTokenNotFoundError("no token")), "you are not logged in. Run `hf auth login` or set HF_TOKEN"),
        (Hub(error=HfHubHTTPError(f"403 for {token}", response=Response())), "the hub refused: 403 for hf_…"),  # type: ignore[arg-type]
        (Hub(error=ConnectionError("no route")), "the hub refused: no route"),
    ):
        monkeypatch.setattr(publishing, "HfApi", hub)
        result = cli("publish", run, "--repo", "me/erase-cat")
        refused(result, "--repo = 'me/erase-cat': ", words)
        assert token not in result.err + result.out
        assert not hub.calls
    refused(cli("publish", run, "--repo", "no-owner", "--dry_run"), "--repo = 'no-owner': is no repository name")
    refused(cli("publish", run / "nowhere", "--repo", "me/x", "--dry_run"), "there is no such file")


def test_weights_are_the_trained_ones(run: Path, cli: Cli) -> None:
    assert cli("publish", run, "--repo", "me/x", "--dry_run").status == 0
    name = "pytorch_lora_weights.safetensors"
    one, two = load_file(run / name), load_file(run / "hub" / name)
    assert one.keys() == two.keys() and all(bool((one[key] == two[key]).all()) for key in one)
