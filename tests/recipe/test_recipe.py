"""Recipes: the YAML file, the flags, and every complaint about them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.errors import UserError
from erasediff_lora.objectives.erasediff import EraseDiffSettings
from erasediff_lora.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipes_are_valid_and_say_how_to_run_them(file: Path) -> None:
    try:
        recipe = Recipe.load(file)
    except UserError as error:  # a data set that is not on every machine
        assert {problem.what for problem in error.problems} == {"there is no such folder."}
        values = yaml.safe_load(file.read_text())
        for name in ("forget", "retain"):
            del values[name]["images"]
        recipe = Recipe.parse(values)
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml())) == recipe
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ") and f"recipes/{file.name}" in first


def test_flags_override_the_file(recipe_file: RecipeFile, cli: Cli) -> None:
    status = cli(
        "prepare", recipe_file(), "--forget.concepts", "[{name: cat, anchor: dog}]", "--sampling.seed=3",
        "--objective.target", "anchor",
    ).status  # fmt: skip
    assert status == 0


def test_all_problems_are_reported_at_once(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file(
        adapter={"rank": 0, "target": "attention"},
        training={"steps": "many", "optimizer": "adam8bit"},
        sampling={"guidance": -1},
        model={"dtype": "float8", "family": "sdxl"},
        objetive={"name": "erasediff"},
    )
    result = cli("train", file, "--trainig.steps", "5")
    assert result.status == 2
    assert "9 problems" in result.err
    for line in (
        "adapter.rank = 0: must be greater than or equal to 1",
        "adapter.target = 'attention': is unknown. Did you mean 'targets'?",
        "training.steps = 'many': must be a valid integer",
        "training.optimizer = 'adam8bit': must be 'adamw', 'adamw8bit'",
        "sampling.guidance = -1: must be greater than or equal to 0",
        "model.dtype = 'float8': must be 'auto', 'float32', 'bfloat16', 'float16' or 'float64'. Did you mean '",
        "model.family = 'sdxl': must be 'stable_diffusion', 'stable_diffusion_xl', 'stable_diffusion_3', 'flux',",
        "objetive = {'name': 'erasediff'}: is unknown. Did you mean 'objective'?",
        "argument = '--trainig.steps': is no field of the recipe. Did you mean 'training.steps'?",
    ):
        assert line in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == [file]  # no output folder, no cache


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forget": {"concepts": [{"name": "cat", "anchor": "Cat"}]}},
         "forget.concepts.0.anchor = 'Cat': is the concept itself."),
        ({"objective": {"target": "anchor"}, "retain": {"concepts": [], "templates": ["a dog"]}},
         "forget.concepts.0.anchor = None: 'cat' has no anchor"),
        ({"retain": {"concepts": ["cat"]}}, "retain.concepts.0 = 'cat': is to be forgotten as well."),
        ({"retain": {"concepts": ["dog", "Cats"]}}, "retain.concepts.1 = 'Cats': is to be forgotten as well."),
        ({"forget": {"concepts": ["French horn", "french_horn"]}}, "forget.concepts.1 = 'french_horn': is there"),
        ({"retain": {"concepts": [], "templates": ["a dog"]}}, "retain.concepts = []: objective.target: random_anchor"),
        ({"forget": {"templates": ["a photo"]}}, "forget.templates = 'a photo': does not name the concept."),
        ({"forget": {"templates": ["a {mood} {concept}"]}},
         "{mood} has no values. List them under forget.placeholders.mood."),
        ({"forget": {"templates": ["a {concept"]}}, "is not a template"),
        ({"forget": {"images": {"folder": "/nowhere"}}}, "forget.images.folder = '/nowhere': there is no such folder."),
        ({"retain": {"images": {}}}, "needs exactly one of folder and dataset."),
        ({"forget": {"concepts": []}}, "forget.concepts = []: List should have at least 1 item"),
        ({"model": {"base": "weights.ckpt"}}, "model.base = 'weights.ckpt': is a pickle, which can run code"),
        ({"model": {"base": "demo"}, "forget": {"concepts": ["catt"]}},
         "forget.concepts.0.name = 'catt': the demo model does not know it. Did you mean 'cat'?"),
        ({"training": {"batch_size": 3, "gradient_accumulation": 2}}, "does not divide training.batch_size (3)."),
        ({"adapter": {"targets": ["("]}}, "adapter.targets = '(': is not a regular expression"),
    ],
)  # fmt: skip
def test_problems_between_fields(recipe_file: RecipeFile, cli: Cli, changes: Any, message: str) -> None:
    result = cli("train", recipe_file(**changes))
    assert result.status == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_missing_sections_are_named() -> None:
    with pytest.raises(UserError) as caught:
        Recipe.parse({})
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"forget.concepts", "forget.templates", "retain.templates"}


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00"])
def test_unreadable_recipes(tmp_path: Path, cli: Cli, content: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(content)
    result = cli("train", file)
    assert result.status == 2
    assert f"recipe = '{file}': is not" in result.err
    assert "there is no such file" in cli("train", tmp_path / "none.yaml").err


def test_stray_arguments(recipe_file: RecipeFile, cli: Cli) -> None:
    result = cli("train", recipe_file(), "stray", "--training.steps")
    assert result.status == 2
    assert "argument = 'stray': is not expected here." in result.err
    assert "argument = '--training.steps': has no value." in result.err


def test_a_preset_fills_what_the_recipe_leaves_open(recipe_file: RecipeFile, tmp_path: Path) -> None:
    def objective(recipe: Recipe) -> EraseDiffSettings:
        assert isinstance(recipe.objective, EraseDiffSettings)
        return recipe.objective

    plain = Recipe.load(recipe_file())
    assert (plain.adversary.pool, plain.retain.focus, objective(plain).retain_target) == (0, 0.0, "data")
    robust = Recipe.load(recipe_file(), {"preset": "robust"})
    assert robust.adversary.pool > 0 and robust.retain.focus > 0 and objective(robust).retain_target == "base"
    own = Recipe.load(recipe_file(), {"preset": "robust", "adversary.pool": 2, "objective.retain_target": "data"})
    assert (own.adversary.pool, own.retain.focus, objective(own).retain_target) == (2, robust.retain.focus, "data")
    file = tmp_path / "saved.yaml"
    file.write_text(own.to_yaml())
    assert Recipe.load(file) == own, "saved in full, it reads back as it was"
    paper = objective(Recipe.load(recipe_file(objective={"preset": "paper"}), {"preset": "robust"}))
    assert paper.eta == 1.0, "what the method's own preset says, which was asked for by name, comes first"
    assert paper.retain_target == "base"
    other = Recipe.load(recipe_file(objective={"name": "esd"}), {"preset": "robust"})
    assert other.adversary.pool == robust.adversary.pool, "a method without such a field takes the rest of the preset"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--preset", "robuts"), "preset = 'robuts': must be 'plain' or 'robust'. Did you mean 'robust'?"),
        (("--preset", "[robust]"), "preset = ['robust']: must be 'plain' or 'robust'."),
        (("--preset", "robust", "--objective", "7"), "objective = 7"),
        (("--preset", "robust", "--objective.name", "[esd]"), "objective.name = ['esd']"),
        (("--preset", "robust", "--retain", "dog"), "retain = 'dog'"),
        (("--adversary.share", "0"), "adversary.share = 0"),
        (("--adversary.pool", "-1"), "adversary.pool = -1"),
        (("--retain.focus", "2"), "retain.focus = 2"),
    ],
)
def test_bad_values_of_presets_and_the_adversary(flags: Any, message: str, recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("train", recipe_file(), *flags), message)
