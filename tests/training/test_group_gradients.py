"""The gradient of every concept's loss: from one pass as from a pass for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file
from torch import Tensor

from erasediff_lora import denoisers
from erasediff_lora.objectives import Batch
from erasediff_lora.objectives.base import Shown, flatten, losses_and_gradients, losses_by_concept
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.recipe import Recipe
from erasediff_lora.training.setup import adapt, create_objective

GROUPS = torch.tensor([0, 2, 0, 1, 2, 2])
SHARES = (2 / 6, 1 / 6, 3 / 6)
CONVOLUTIONS = [r".*resnets\.0\.conv1", r".*proj_in", r".*downsamplers\.0\.conv", r".*attn2\.to_k"]


def batch(denoiser: Any) -> Batch:
    generator = torch.Generator().manual_seed(5)
    size, dtype = len(GROUPS), denoiser.dtype
    channels, side = denoiser.network.config.in_channels, denoiser.network.config.sample_size
    noisy, target = torch.randn(2, size, channels, side, side, generator=generator, dtype=torch.float64).to(dtype)
    shape = denoiser.hollow_prompts(size).tokens.shape
    prompts = Condition(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
    timesteps = torch.randint(0, 1000, (size,), generator=generator)
    return Batch(noisy, timesteps, prompts, target, shown=Shown(GROUPS, ("a", "b", "c"), SHARES))


def apart(objective: Any, data: Batch) -> tuple[Tensor, Tensor]:
    """A pass for each concept, by torch alone."""
    losses, gradients = [], []
    for group in range(3):
        loss = objective.loss(replace(data, shown=None)[(data.shown.rows == group).nonzero().flatten()])
        losses.append(loss.detach())
        gradients.append(flatten(torch.autograd.grad(loss, objective.network.parameters)))
    return torch.stack(losses), torch.stack(gradients)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "adapter",
    [
        {"targets": "attention_feed_forward", "rank": 3},
        {"targets": CONVOLUTIONS, "rank": 2, "alpha": 5.0},
        {"targets": "attention", "rank": 2, "dora": True},
        "none",
    ],
)
def test_one_pass_finds_what_a_pass_for_each_concept_finds(
    adapter: Any, checkpointing: bool, micro_batches: int, recipe_file: RecipeFile
) -> None:
    dtype = "float32" if adapter == "none" else "float64"
    changes = {"adapter": adapter, "model": {"dtype": dtype}, "training": {"gradient_checkpointing": checkpointing}}
    recipe = Recipe.load(recipe_file(**changes))
    denoiser = denoisers.load(recipe.model)
    trainable = adapt(recipe, denoiser)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    objective = create_objective(recipe, denoiser, trainable)
    assert (objective.network.group_gradients is None) == ("dora" in adapter or adapter == "none")
    data = batch(denoiser)
    parts = [data[rows] for rows in torch.arange(6).chunk(micro_batches)]
    losses, gradients = losses_and_gradients(objective.network, parts, objective.losses)
    wanted_losses, wanted = apart(objective, data)
    coarse = dtype == "float32" or "dora" in adapter  # whose norms peft takes in float32
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
    if coarse:
        close = {"rtol": 1e-4, "atol": 1e-5 * float(wanted.abs().max())}
    torch.testing.assert_close(losses, wanted_losses.to(losses), **close)
    torch.testing.assert_close(gradients, wanted.to(gradients), **close)
    assert min(gradient.norm() for gradient in gradients) > 1e-6
    with torch.no_grad():
        again = losses_by_concept(objective.network, parts, objective.losses)
    torch.testing.assert_close(again, losses, **close)
    assert "forward" not in vars(next(iter(denoiser.network.modules())))


CONCEPTS = [{"name": name, "anchor": "dog"} for name in ("cat", "car")]
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inner steps": {"objective": {"barrier": "gap", "gradient": "first_order", "inner_steps": 2}},
    "several concepts": {"forget": {"concepts": CONCEPTS, "count": 6}, "retain": {"concepts": ["dog"]}},
    "weighted": {"model": {"dtype": "float64", "prediction_type": "v_prediction"}},
}


@pytest.mark.parametrize("name", RUNS)
def test_one_pass_over_both_sets_takes_the_steps_of_two(
    name: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"steps": 3, "batch_size": 4, "gradient_accumulation": 2, "min_snr_gamma": 5.0}
    file = recipe_file(**{"model": {"dtype": "float64"}} | RUNS[name], training=training)
    assert cli("train", file, "--output", tmp_path / "two").status == 0
    sizes, forward = set(), UNet2DConditionModel.forward

    def watched(self: Any, sample: Any, *arguments: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            sizes.add(len(sample))
        return forward(self, sample, *arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", watched)
    result = cli("train", file, "--training.one_pass", "true")
    assert result.status == 0, result.err
    assert 4 in sizes, "two samples of each set together"
    one, two = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("run", "two"))
    for key, tensor in two.items():
        torch.testing.assert_close(one[key], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"adapter": {"dora": True}}, "adapter.dora = True: leaves no gradients that can be told apart"),
        ({"adapter": "none"}, "adapter.kind = 'none': leaves no gradients"),
        ({"training": {"one_pass": True, "compile": True}}, "training.compile = True: leaves no gradients"),
        ({"objective": {"name": "esd"}}, "training.one_pass = True: is of no use to objective.name esd."),
    ],
)
def test_where_there_is_no_one_pass(changes: Any, what: str, recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("plan", recipe_file(**{"training": {"one_pass": True}} | changes)), what)
