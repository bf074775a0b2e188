"""What paths in recipes and on the command line mean: `~`, links that lead nowhere, and what can be no path."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from adapters import random_adapter
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora import Recipe
from erasediff_lora.adapter import formats
from erasediff_lora.errors import UserError
from erasediff_lora.storage.paths import existing, expanded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_home_folder_in_a_recipe(home: Path, recipe_file: RecipeFile) -> None:
    """One folder for the run, whatever reads it: not a folder called ~ here and the home folder there."""
    given = {"output": "~/runs/cat", "cache": "~/cache", "model": {"base": "~/models/base.safetensors"}}
    recipe = Recipe.load(recipe_file(**given))
    assert recipe.output == home / "runs/cat" and recipe.cache == home / "cache"
    assert recipe.model.base == str(home / "models/base.safetensors")
    assert Recipe.load(recipe_file(**given), {"output": "~/other"}).output == home / "other"
    (home / "pictures").mkdir()
    pictures = {"images": {"folder": "~/pictures"}}
    assert Recipe.load(recipe_file(forget=pictures)).forget.images.folder == home / "pictures"  # type: ignore[union-attr]
    assert Recipe.load(recipe_file(output="runs/~x")).output == Path("runs/~x")


def test_a_run_in_the_home_folder(home: Path, tiny_base: Path, recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(output="~/myrun", model={"base": str(tiny_base)})
    result = cli("train", file)
    assert result.status == 0, result.err
    assert (home / "myrun/evaluation.json").is_file() and (home / "myrun/pytorch_lora_weights.safetensors").is_file()
    assert not (Path.cwd() / "~").exists()


def test_the_home_folder_on_the_command_line(home: Path, tiny_base: Path, cli: Cli) -> None:
    formats.write(random_adapter(tiny_base), home / "a.safetensors", "diffusers")
    shutil.copytree(tiny_base, home / "base")
    assert cli("inspect", "~/a.safetensors").status == 0
    assert cli("convert", "~/a.safetensors", "~/b.safetensors", "--format", "kohya").status == 0
    assert cli("merge", "~/base", "~/a.safetensors:0.5", "~/b.safetensors", "--output", "~/merged").status == 0
    assert cli("stack", "~/a.safetensors", "--output", "~/s.safetensors", "--report", "~/report.json").status == 0
    assert cli("extract", "~/base", "~/merged", "--output", "~/x", "--rank", 4).status == 0
    assert cli("recipes", "copy", "sd15_object", "~/recipe.yaml").status == 0
    made = {path.name for path in home.iterdir()}
    assert made >= {"b.safetensors", "merged", "s.safetensors", "report.json", "x", "recipe.yaml"}
    assert not (Path.cwd() / "~").exists()


def test_links_that_lead_nowhere(home: Path, tiny_base: Path, recipe_file: RecipeFile, cli: Cli) -> None:
    """As a cleaned hub cache has them: snapshots whose blobs are gone."""
    formats.write(random_adapter(tiny_base), home / "a.safetensors", "diffusers")
    link = home / "link.safetensors"
    link.symlink_to("../blobs/gone")
    told = f"= '{link}': is a link to ../blobs/gone, which is not there."
    refused(cli("inspect", link), f"adapter {told}")
    refused(cli("merge", link, home / "a.safetensors", "--output", home / "o"), f"model {told}")
    refused(cli("merge", tiny_base, link, "--output", home / "o"), f"adapter {told}")
    refused(cli("train", recipe_file(model={"base": str(link)})), f"model.base {told}")
    recipe = home / "recipe.yaml"
    recipe.symlink_to("nowhere.yaml")
    refused(cli("train", recipe), "recipe = ", "is a link to nowhere.yaml, which is not there.")
    for inside in ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        model = home / inside.partition("/")[0]
        shutil.copytree(tiny_base, model)
        (model / inside).unlink()
        (model / inside).symlink_to("../../blobs/gone")
        result = cli("merge", model, home / "a.safetensors", "--output", home / "o")
        refused(result, f"'{model / inside}': is a link to ../../blobs/gone, which is not there.")
    folder = home / "adapter"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").symlink_to("gone")
    refused(cli("inspect", folder), "is a link to gone, which is not there.")
    assert not (home / "o").exists()


def test_what_can_be_no_path(home: Path) -> None:
    assert expanded("~", "x") == home and existing("~/nothing there", "x") == home / "nothing there"
    for text in ("~nobody-of-this-name/x", "a\0b"):
        with pytest.raises(UserError, match=r"x = .*: is no path"):
            expanded(text, "x")
    with pytest.raises(UserError, match=r"cannot be read: File name too long|is no path"):
        existing("a" * 5000, "x")
