"""`erasediff-lora init`: a recipe that explains itself, for any base, and what is said of bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import Cli
from PIL import Image
from refusals import refused
from single_file import pack
from tiny import tiny_class_pipeline, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline
from tiny_transformers import (
    tiny_flux_2_klein_pipeline,
    tiny_flux_pipeline,
    tiny_qwen_image_pipeline,
    tiny_z_image_pipeline,
)

from erasediff_lora import demo
from erasediff_lora.recipe import Recipe


@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def init(cli: Cli, *words: object) -> dict[str, Any]:
    """The recipe that it writes, which is valid."""
    result = cli("init", *words, "--output", "mine.yaml", "--overwrite")
    assert result.status == 0, result.err
    Recipe.load("mine.yaml")
    return dict(yaml.safe_load(Path("mine.yaml").read_text()))


@pytest.mark.parametrize(("kind", "name", "anchor"), [("style", "blueprint", "color"), ("object", "clock", "cat")])
def test_the_embedded_model(cli: Cli, kind: str, name: str, anchor: str) -> None:
    recipe = init(cli, f"--{kind}", name)
    assert recipe["forget"]["concepts"] == [{"name": name, "anchor": anchor}]
    assert name not in recipe["retain"]["concepts"] and recipe["evaluation"]["judge"] == "demo"


def test_it_says_what_to_run_next_and_explains_fields(cli: Cli) -> None:
    shown = cli("init", "--style", "blueprint").out
    assert "erasediff-lora train erase-blueprint.yaml" in shown
    text = Path("erase-blueprint.yaml").read_text()
    assert text.startswith("# This recipe erases the style blueprint from demo.")
    assert text.count("  # ") > 10, "comments inside the tables"


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3"])
@pytest.mark.parametrize("what", ["--style", "--object", "--nudity"])
def test_a_base_of_full_size(cli: Cli, family: str, what: str) -> None:
    names = [] if what == "--nudity" else ["Claude Monet", "Rembrandt"]
    recipe = init(cli, what, *names, "--base", "own/er", "--family", family)
    assert recipe["model"] == {"base": "own/er", "family": family}
    assert recipe["sampling"]["batch_size"] == (4 if family == "stable_diffusion" else 1)
    forgotten = [concept["name"] for concept in recipe["forget"]["concepts"]]
    assert forgotten == (names or ["naked", "nude"])
    assert not set(forgotten) & set(recipe["retain"]["concepts"])
    if what == "--style":
        assert recipe["evaluation"]["paraphrases"]["names"] == {"Claude Monet": ["Monet"]}
        assert recipe["retain"]["neighbours"] == 5 and recipe["evaluation"]["forget_samples"] == 160


@pytest.mark.parametrize(("family", "make"), [
    ("stable_diffusion", tiny_pipeline), ("stable_diffusion_xl", tiny_xl_pipeline),
    ("stable_diffusion_3", tiny_sd3_pipeline), ("flux", tiny_flux_pipeline),
    ("flux_2_klein", tiny_flux_2_klein_pipeline), ("z_image", tiny_z_image_pipeline),
    ("qwen_image", tiny_qwen_image_pipeline),
])  # fmt: skip
def test_a_folder_of_every_family_gets_a_recipe_that_can_be_planned(
    cli: Cli, family: str, make: Callable[[], Any], tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path / "base")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "1.png")
    for words in (["--style", "Claude Monet"], ["--nudity"], ["--object", "dog", "--images", "photos"]):
        assert init(cli, *words, "--base", "base")["model"] == {"base": "base", "family": family}
    planned = cli("plan", "mine.yaml", "--vram", "64GiB")
    assert planned.status == 0 and "fits in 64" in planned.out, planned.err


def test_flags_stand_in_the_recipe(cli: Cli) -> None:
    words = ("--training.steps", "7", "--evaluation.judge", "null", "--model.config", "somewhere")
    recipe = init(cli, "--style", "Monet", "--base", "own/er", "--family", "sd_v1", *words)
    assert (recipe["training"]["steps"], recipe["evaluation"]["judge"]) == (7, None)
    assert recipe["model"]["config"] == "somewhere"


def test_the_base_says_of_what_family_it_is(cli: Cli, tiny_base: Path, tmp_path: Path) -> None:
    assert init(cli, "--object", "dog", "--base", tiny_base)["model"]["family"] == "stable_diffusion"
    packed = pack(demo.MODEL_DIR, tmp_path / "model.safetensors")
    recipe = init(cli, "--style", "blueprint", "--base", packed)
    assert recipe["model"] == {"base": str(packed), "config": str(demo.MODEL_DIR)}
    assert recipe["evaluation"]["judge"] == "demo", "it is the embedded model, in one file"


def test_own_pictures(cli: Cli, tmp_path: Path) -> None:
    for name in ("cat", "clock"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    by_folder = init(cli, "--images", "photos")
    assert [concept["name"] for concept in by_folder["forget"]["concepts"]] == ["cat", "clock"]
    assert by_folder["forget"]["images"] == {"folder": "photos"}
    named = init(cli, "--images", "photos/cat", "--object", "cat")
    assert [concept["name"] for concept in named["forget"]["concepts"]] == ["cat"]
    refused(cli("init", "--images", "photos/cat"), "--images = 'photos/cat': does not say what its pictures show.")


def test_bad_input(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    demo_style = ("init", "--style", "blueprint")
    for words, message in {
        ("init",): "--style = None: nothing to erase is named.",
        ("init", "--object", " "): "--object = '': is no name.",
        ("init", "--object", "x" * 10_000): "has 10,000 characters",
        ("init", "--object", "tiger"): "the demo model does not know it. Choose one of:",
        ("init", "--object", "cat", "blueprint"): "--object = 'blueprint': the demo model does not know it.",
        ("init", "--style", *demo.STYLES): "are all that there is.",
        ("init", "--nudity"): "--base = 'demo': does not draw nudity.",
        ("init", "--images", "nowhere"): "--images = 'nowhere': there is no such folder.",
        ("init", "--images", "empty"): "--images = 'empty': holds no picture.",
        (
            *demo_style,
            "--base",
            "nowhere.safetensors",
        ): "'nowhere.safetensors': there is no such folder or file.",
        (*demo_style, "--base", "no/where"): "is neither a local path nor a hub model within reach",
        (*demo_style, "--base", "broken.safetensors"): "is no intact safetensors file",
        (*demo_style, "--base", "model.ckpt"): "is a pickle, which can run code",
        (*demo_style, "--base", "empty"): "is no diffusers folder",
        (
            *demo_style,
            "--base",
            "no/where",
            "--family",
            "sd",
        ): "cannot be a sd. Add --family, one of: stable_",
        (*demo_style, "--output", "empty"): "output = 'empty': is a folder.",
        (*demo_style, "--output", "broken.safetensors/new.yaml"): "output = ",
        (*demo_style, "--trainig.steps", "3"): "is no field of the recipe. Did you mean 'training.steps'?",
        (*demo_style, "--training.steps", "-3"): "training.steps = -3",
    }.items():
        refused(cli(*words), message)
    assert not list(tmp_path.glob("*.yaml")), "nothing is written"


def test_classes_are_no_prompts(cli: Cli, tmp_path: Path) -> None:
    tiny_class_pipeline({0: "cat", 1: "dog"}).save_pretrained(tmp_path / "classes")
    refused(cli("init", "--object", "cat", "--base", "classes"), "--base = 'classes': draws classes, not prompts.")


def test_no_recipe_is_overwritten(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "erase-cat.yaml"
    mine.write_text("mine")
    refused(cli("init", "--object", "cat"), "output = 'erase-cat.yaml': exists already.")
    assert mine.read_text() == "mine"
    assert cli("init", "--object", "cat", "--overwrite").status == 0 and "concepts:" in mine.read_text()


@pytest.mark.parametrize(("name", "file"), [
    ('Vincent "Willem" van Gogh', "erase-vincent-willem-van-gogh.yaml"),
    ("O'Keeffe, Georgia", "erase-o-keeffe-georgia.yaml"),
    ("Albrecht Dürer", "erase-albrecht-durer.yaml"),
    ("宮崎 駿", "erase-宮崎-駿.yaml"),
    ("x" * 200, f"erase-{'x' * 60}.yaml"),
    ("[a] {concept}: #1 *&`$HOME`", "erase-a-concept-1-home.yaml"),
    ("null", "erase-null.yaml"),
])  # fmt: skip
def test_odd_names_come_through(cli: Cli, name: str, file: str) -> None:
    result = cli("init", "--style", name, "--base", "own/er", "--family", "sd_v1")
    assert result.status == 0 and result.out.startswith(f"{file}: ")
    assert [concept.name for concept in Recipe.load(file).forget.concepts] == [name]


def test_the_embedded_model_under_another_name_is_told(cli: Cli, tmp_path: Path) -> None:
    packed = pack(demo.MODEL_DIR, tmp_path / "model.safetensors")
    result = cli("init", "--style", "Vincent van Gogh", "--base", packed.name)
    refused(result, "the demo model does not know it.", "model.safetensors is the demo model, in one file.")
    refused(cli("init", "--nudity", "--base", packed.name), "--base = 'model.safetensors': does not draw nudity.")
