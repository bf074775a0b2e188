"""Parts of other packages in a recipe: their settings, their checks; and one that is broken harms nobody."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import ClassVar, Literal

import pytest
from fixtures import Cli, RecipeFile
from pydantic import Field
from refusals import refused

from erasediff_lora import registry
from erasediff_lora.errors import Problem, UserError
from erasediff_lora.recipe import ObjectiveSettings, Recipe, Sections
from erasediff_lora.registry import lookup

MODULE = "somebodys_objectives"


class ToySettings(ObjectiveSettings):
    presets: ClassVar = {"default": {}, "strong": {"strength": 3.0}}
    name: Literal["toy"] = Field("toy", description="the method")
    strength: float = Field(1.0, gt=0, description="how strong it is")

    def check(self, sections: Sections) -> list[Problem]:
        if sections.training and sections.training.shard:
            return [Problem("training.shard", True, "is beyond the toy.")]
        return []


class Toy:
    Settings = ToySettings


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, MODULE, types.SimpleNamespace(Toy=Toy))
    points = [
        EntryPoint("toy", f"{MODULE}:Toy", "erasediff_lora.objectives"),
        EntryPoint("broken", "module_that_is_not_there:Thing", "erasediff_lora.objectives"),
    ]
    kinds = [found for found in vars(registry).values() if isinstance(found, lookup.Registry)]
    monkeypatch.setattr(lookup, "entry_points", lambda group: [point for point in points if point.group == group])
    for kind in kinds:
        fresh = lookup.Registry(kind.kind, kind._builtin)
        for name, value in vars(fresh).items():
            monkeypatch.setattr(kind, name, value)
        kind.__dict__.pop("_plugins", None)
    yield
    for kind in kinds:
        kind.__dict__.pop("_plugins", None)


def test_its_settings_are_a_table(recipe_file: RecipeFile) -> None:
    recipe = Recipe.load(recipe_file(objective={"name": "toy", "preset": "strong"}))
    assert recipe.objective == ToySettings(name="toy", preset="strong", strength=3.0)
    assert Recipe.load(recipe_file(objective="toy")).objective == ToySettings()
    with pytest.raises(UserError) as caught:
        Recipe.load(recipe_file(objective={"name": "toy", "strength": 0, "eta": 1}))
    assert {problem.field for problem in caught.value.problems} == {"objective.strength", "objective.eta"}


def test_its_check_is_asked(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("train", recipe_file(objective="toy"), "--training.shard", "true"), "shard = True: is beyond the toy.")


def test_a_broken_one_is_named_and_all_else_works(recipe_file: RecipeFile, cli: Cli) -> None:
    result = cli("recipes", "fields", "objective")
    assert result.status == 0 and "--objective.strength " in result.out and "--objective.eta " in result.out
    assert "the plug-in 'broken' (objectives, module_that_is_not_there:Thing) is left out: " in result.err
    assert Recipe.load(recipe_file()).objective.name == "erasediff"
    refused(cli("train", recipe_file(objective="brokn")), "objective.name = 'brokn': is unknown. Choose one of:")
    refused(cli("train", recipe_file(objective="broken")), "objective.name = 'broken': is unknown.")
    with pytest.raises(SystemExit) as stop:
        cli("train", "--help")
    assert stop.value.code == 0
