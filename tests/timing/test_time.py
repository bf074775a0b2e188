"""`plan` says how long a run takes: the passes are those that a run makes, and what halves it does."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from fixtures import Cli, RecipeFile

from erasediff_lora.timing import speed
from erasediff_lora.timing.speed import Speed

ROBUST: dict[str, Any] = {
    "forget": {"concepts": [{"name": "cat", "anchor": "dog"}], "count": 6},
    "objective": {"picture_guidance": 0.85, "target": "anchor", "retain_target": "base"},
    "adversary": {"pool": 2, "refresh_every": 2, "steps": 3, "batch_size": 4},
    "retain": {"focus": 0.5, "focus_every": 2, "focus_samples": 4, "contrast": 0.5},
}
SECTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "robust": ROBUST,
    "inner steps": {"objective": {"barrier": "gap", "gradient": "first_order", "inner_steps": 3}},
    "Fisher information": {"objective": {"name": "selective_amnesia"}},
}
LINE = re.compile(r"^(\S.*?)  +(.*?)  +([\d,]+) +([\d,]+)(?: +(.*))?$", re.MULTILINE)


def stages_of(told: str) -> dict[str, tuple[int, int]]:
    """Stage -> pictures through the network without gradients, and with."""
    rows = LINE.findall(told[told.index("\nstage") :])
    return {name: (int(looked.replace(",", "")), int(trained.replace(",", ""))) for name, _, looked, trained, _ in rows}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What goes through any network, counted by the network itself."""
    seen: Counter[str] = Counter()
    forward = UNet2DConditionModel.forward

    def counted(self: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
        if not sample.is_meta:
            seen["trained" if torch.is_grad_enabled() else "looked"] += len(sample)
        return forward(self, sample, *arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    return seen


@pytest.mark.parametrize("name", SECTIONS)
def test_the_passes_are_those_of_the_run(
    name: str, recipe_file: RecipeFile, cli: Cli, passes: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "is_at_hand", lambda recipe, device, anyhow: False)
    sections = {"evaluation": {"metrics": [], "forget_samples": 3, "retain_samples": 2}} | SECTIONS[name]
    file = recipe_file(**sections, training={"steps": 4, "batch_size": 4, "gradient_accumulation": 2})
    planned = cli("plan", file)
    assert planned.status == 0 and "--time says how long" in planned.out, planned.err
    found = stages_of(planned.out)
    assert not passes, "nothing has run yet"
    assert cli("train", file).status == 0
    assert sum(trained for _, trained in found.values()) == passes["trained"]
    assert sum(looked for looked, _ in found.values()) == passes["looked"]


def test_the_time_is_the_passes_by_the_clock_and_half_of_it_is_half(
    recipe_file: RecipeFile, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure", lambda recipe, stages: Speed(looked=1.0, trained=3.0))
    file = recipe_file(
        forget={"count": 64},
        sampling={"steps": 20},
        training={"steps": 200, "batch_size": 4},
        evaluation={"forget_samples": 64},
    )
    told = cli("plan", file).out
    seconds = sum(looked + 3 * trained for looked, trained in stages_of(told).values())
    hours = f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60:02d} min"
    assert re.search(rf"^in all, about +{hours}$", told, re.MULTILINE), told
    flags = told.split("half the time: ")[1].split(" (")[0].split()
    shorter = stages_of(cli("plan", file, *flags).out)
    assert sum(looked + 3 * trained for looked, trained in shorter.values()) <= seconds / 2


def test_half_the_pictures_are_not_suggested_where_concepts_would_have_none(recipe_file: RecipeFile, cli: Cli) -> None:
    concepts = [{"name": f"artist {number}", "anchor": "dog"} for number in range(64)]
    told = cli("plan", recipe_file(forget={"concepts": concepts, "count": 64}, training={"steps": 200}))
    assert told.status == 0, told.err
    assert "in all, about" in told.out and "--forget.count" not in told.out


def test_a_clock_runs_on_this_device(recipe_file: RecipeFile, cli: Cli) -> None:
    told = cli("plan", recipe_file(training={"steps": 3, "batch_size": 2})).out
    assert re.search(r"^steps +3 .* \d+ s$", told, re.MULTILINE), told
    assert re.search(r"^in all, about +\d+ s$", told, re.MULTILINE)
    assert "no setting halves it" in told
