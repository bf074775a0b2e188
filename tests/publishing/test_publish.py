"""The hub folder and its upload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from adapters import draw, pipeline
from fixtures import Cli
from huggingface_hub import ModelCard, close_session, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from measured_run import accuracy, measure
from PIL import Image
from refusals import refused
from safetensors.torch import load_file

from erasediff_lora.adapter import formats
from erasediff_lora.publishing import hub as publishing


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
        "No classifier judged the pictures; look at them.",
        formats.read(run).provenance.base_fingerprint,
        "Intended use and limits",
    ):
        assert words in card.text
    assert "None" not in card.text and "{{" not in card.text
    assert 'from_pretrained("owner/base")' in card.text and "hf download me/erase-cat" in card.text


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
        self.existing, self.error = existing, error  # whether it is private
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

    def update_repo_settings(self, repo: str, *, private: bool) -> None:
        self.calls.append(("settings", repo, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append(("upload", repo_id, sorted(p.name for p in Path(folder_path).iterdir())))


class Response:
    headers: ClassVar[dict[str, str]] = {}
    status_code = 404
    request = None


@pytest.fixture
def valid(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub finds every card valid; holds those that it was asked about."""
    asked: list[str] = []
    monkeypatch.setattr(ModelCard, "validate", lambda card, repo_type: asked.append(str(card)))
    return asked


@pytest.mark.parametrize("public", [False, True])
def test_upload_is_private_unless_asked(
    public: bool, run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, valid: list[str]
) -> None:
    hub = Hub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    measure(run)
    result = cli("publish", run, "--repo", "me/erase-cat", *(["--public"] if public else []))
    assert result.status == 0, result.err
    assert hub.calls[0] == ("create", "me/erase-cat", not public)
    assert hub.calls[1][:2] == ("upload", "me/erase-cat") and "README.md" in hub.calls[1][2]
    assert f"https://huggingface.co/me/erase-cat ({'public' if public else 'private'})" in result.out
    assert valid == [(run / "hub/README.md").read_text()]


@pytest.mark.parametrize(("existing", "changed"), [(True, [("settings", "me/erase-cat", False)]), (False, [])])
def test_what_is_called_public_is_public(
    existing: bool,
    changed: list[Any],
    run: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    valid: list[str],
) -> None:
    hub = Hub(existing=existing)
    monkeypatch.setattr(publishing, "HfApi", hub)
    measure(run)
    result = cli("publish", run, "--repo", "me/erase-cat", "--public")
    assert result.status == 0 and "me/erase-cat (public)" in result.out, result.err
    assert hub.calls[2:] == changed, "after the upload"
    assert ("was private, and is public now" in result.err) == existing


UNPROVEN: dict[str, tuple[dict[str, Any] | None, str, str, str]] = {
    "failed": (accuracy(0.5), "its erasure failed: cat is", "Train it further", "The erasure failed"),
    "no judge": (None, "its erasure was not measured: No judge", "Measure it with `erasediff-lora", "was not measured"),
    "no evaluation": ({}, "its erasure was not measured: Nothing", "Measure it with", "was not measured"),
}


@pytest.mark.parametrize(("numbers", "what", "remedy", "sentence"), UNPROVEN.values(), ids=UNPROVEN)
def test_what_is_not_erased_is_made_public_by_force_only(
    numbers: dict[str, Any] | None,
    what: str,
    remedy: str,
    sentence: str,
    run: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    valid: list[str],
) -> None:
    hub = Hub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    if numbers:
        measure(run, numbers)
    elif numbers is not None:
        (run / "evaluation.json").unlink()
    for more in ([], ["--dry_run"]):
        result = cli("publish", run, "--repo", "me/x", "--public", *more)
        refused(result, "--public = ", what, remedy, "add --force: the card will say so")
    assert not hub.calls and not (run / "hub").exists()

    result = cli("publish", run, "--repo", "me/x")
    assert result.status == 0 and what in result.err and "The card says so." in result.err
    assert hub.calls[0] == ("create", "me/x", True)

    result = cli("publish", run, "--repo", "me/x", "--public", "--force")
    assert result.status == 0, result.err
    assert hub.calls[2] == ("create", "me/x", False)
    text = (run / "hub/README.md").read_text()
    assert sentence in text and "no longer draws" not in text


def test_upload_refusals_name_the_way_out_and_no_token(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, valid: list[str]
) -> None:
    token = "hf_abcdefghijklmnopqrstuvwxyz"
    monkeypatch.setenv("HF_TOKEN", token)
    unreachable = "the hub refused, or cannot be reached: "
    for hub, words in (
        (Hub(existing=False), "exists and is public. Add --public"),
        (Hub(error=LocalTokenNotFoundError("no token")), "you are not logged in. Run `hf auth login` or set HF_TOKEN"),
        (Hub(error=HfHubHTTPError(f"403 for {token}", response=Response())), f"{unreachable}403 for hf_…"),  # type: ignore[arg-type]
        (Hub(error=ConnectionError("no route")), f"{unreachable}no route"),
        (
            Hub(error=HTTPError(f"no way through http://me:{token}@proxy")),
            f"{unreachable}no way through http://…@proxy",
        ),
        (Hub(error=ValueError("Unknown scheme for proxy URL")), f"{unreachable}Unknown scheme"),
        (Hub(error=ImportError("Using SOCKS proxy")), f"{unreachable}Using SOCKS"),
    ):
        monkeypatch.setattr(publishing, "HfApi", hub)
        result = cli("publish", run, "--repo", "me/erase-cat")
        refused(result, "--repo = 'me/erase-cat': ", words)
        assert token not in result.err + result.out
        assert not hub.calls


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9", "nonsense://proxy"])
def test_offline_is_one_line_and_the_folder_is_ready(
    proxy: str | None, run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With huggingface_hub's own client, which finds nobody at this address."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxy is not None:
        monkeypatch.setenv("http_proxy", proxy)
    close_session()
    result = cli("publish", run, "--repo", "me/erase-cat")
    close_session()
    refused(result, "--repo = 'me/erase-cat': the hub refused, or cannot be reached: ", f"is ready in {run / 'hub'}")
    assert (run / "hub/README.md").is_file()


def test_a_card_that_the_hub_refuses_is_not_uploaded(run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def validate(card: ModelCard, repo_type: str) -> None:
        raise ValueError('{"error":"Invalid metadata in model card"}\n')

    hub = Hub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    monkeypatch.setattr(ModelCard, "validate", validate)
    result = cli("publish", run, "--repo", "me/x")
    refused(result, "model card = ", "the hub refuses it: ", "Invalid metadata in model card")
    assert not hub.calls


def test_arguments_are_checked_before_anything_is_made(run: Path, cli: Cli) -> None:
    for name in ("no-owner", "a/b/c", "a/b--c", "a/.b", "a/b.git", "a b/c", "a/" + 97 * "b", "a/b\n", "../x"):
        result = cli("publish", run, "--repo", name, "--dry_run", "--base_model", name, "--license", "none")
        refused(result, "3 problems", "--repo = ", "--base_model = ", "is no repository name", "--license = 'none'")
    assert not (run / "hub").exists()


def test_what_is_no_run_is_named(run: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    takes = "Give the folder of a run, or any folder with an adapter."
    for given, what in (
        (run / "nowhere", "there is no such folder."),
        (run / "pytorch_lora_weights.safetensors", "is a file."),
        (run / "recipe.yaml", "is a file."),
        (tmp_path / "empty", "holds no adapter file."),
    ):
        refused(cli("publish", given, "--repo", "me/x", "--dry_run"), f"run = '{given}': {what} {takes}")


def test_only_a_hub_folder_is_replaced(run: Path, cli: Cli, tmp_path: Path) -> None:
    (run / "hub").mkdir()
    (run / "hub/thesis.tex").write_text("mine")
    refused(cli("publish", run, "--repo", "me/x", "--dry_run"), "is there already, and no hub folder. Move it away")
    assert (run / "hub/thesis.tex").read_text() == "mine"
    (run / "hub").rename(tmp_path / "elsewhere")
    (run / "hub").symlink_to(tmp_path / "elsewhere")
    refused(cli("publish", run, "--repo", "me/x", "--dry_run"), "is there already, and no hub folder.")
    (run / "hub").unlink()
    for _ in range(2):
        assert cli("publish", run, "--repo", "me/x", "--dry_run").status == 0
    (run / "hub/images/mine.png").write_text("mine")
    refused(cli("publish", run, "--repo", "me/x", "--dry_run"), "holds images/mine.png, which is not of this program")
    assert (run / "hub/images/mine.png").read_text() == "mine"


def test_weights_are_the_trained_ones(run: Path, cli: Cli) -> None:
    assert cli("publish", run, "--repo", "me/x", "--dry_run").status == 0
    name = "pytorch_lora_weights.safetensors"
    one, two = load_file(run / name), load_file(run / "hub" / name)
    assert one.keys() == two.keys() and all(bool((one[key] == two[key]).all()) for key in one)
