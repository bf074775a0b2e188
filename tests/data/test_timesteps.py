"""How timesteps of flow matching are drawn, against diffusers' own densities and schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from fixtures import Cli, RecipeFile
from refusals import refused

from erasediff_lora.data.noising import draw_timesteps

COUNT = 200_000
QUANTILES = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])


def shares(timesteps: Any) -> Any:
    return torch.quantile(timesteps.float() / 1000, QUANTILES)


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_they_are_distributed_as_diffusers_examples_draw_them(density: str, shift: float) -> None:
    """Their schedule runs from noise on, so that theirs is the mirror image."""
    ours = draw_timesteps(COUNT, 1000, torch.Generator().manual_seed(0), density, shift)
    assert ours.dtype == torch.int64 and int(ours.min()) >= 0 and int(ours.max()) <= 999
    drawn = compute_density_for_timestep_sampling(
        "none" if density == "uniform" else density, COUNT, logit_mean=0.0, logit_std=1.0,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs = scheduler.sigmas[(drawn * 1000).long().clamp_max(999)] * 1000
    torch.testing.assert_close(shares(ours), shares(theirs), atol=0.005, rtol=0)


def test_uniform_ones_are_those_of_before() -> None:
    ours = draw_timesteps(8, 1000, torch.Generator().manual_seed(3))
    assert torch.equal(ours, torch.randint(0, 1000, (8,), generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(("name", "value"), [("timesteps", "logit_normal"), ("timestep_shift", "3.0")])
def test_models_of_a_noise_schedule_have_none(name: str, value: str, recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("train", recipe_file(), f"--training.{name}", value), f"training.{name} = ", "flow matching", "Omit it")
