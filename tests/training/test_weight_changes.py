"""What an adapter changes of a weight, against the weights that peft merges."""

from __future__ import annotations

import pytest
import torch
from fixtures import RecipeFile

from erasediff_lora import denoisers
from erasediff_lora.adapter.modules import lora_layers
from erasediff_lora.recipe import Recipe
from erasediff_lora.training import trainables


@pytest.mark.parametrize("targets", ["attention", ["down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.proj_in"]])
@pytest.mark.parametrize("dora", [False, True])
def test_changes_are_those_of_the_merged_weights(dora: bool, targets: str | list[str], recipe_file: RecipeFile) -> None:
    recipe = Recipe.load(recipe_file(adapter={"targets": targets, "rank": 3, "alpha": 6.0, "dora": dora}))
    denoiser = denoisers.load(recipe.model)
    trainable = trainables.create(recipe.adapter, denoiser, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.parameters:  # B is 0 at the start, and DoRA's magnitude the norm of W
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    found = [change.detach() for change in trainable.weight_changes()]
    before = [weight.detach().clone() for weight in trainable.base_weights]
    for layer in lora_layers(denoiser.network).values():
        layer.merge()
    merged = [layer.get_base_layer().weight.detach() for layer in lora_layers(denoiser.network).values()]
    for change, old, new in zip(found, before, merged, strict=True):
        torch.testing.assert_close(change, new - old, atol=1e-5, rtol=1e-4)
        assert float(change.norm()) > 0.01
