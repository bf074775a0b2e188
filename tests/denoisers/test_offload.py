"""`model.offload`: the networks take turns. On a CPU all of diffusers' hooks run; only the memory is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file
from tiny import tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

from erasediff_lora import denoisers
from erasediff_lora.denoisers import loading
from erasediff_lora.denoisers.stable_diffusion import StableDiffusion
from erasediff_lora.memory.plan import plan
from erasediff_lora.memory.room import remedy
from erasediff_lora.recipe import Model, Recipe, Sampling

FAMILIES = {
    "stable_diffusion": tiny_pipeline,
    "stable_diffusion_xl": tiny_xl_pipeline,
    "stable_diffusion_3": tiny_sd3_pipeline,
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    FAMILIES[request.param]().save_pretrained(tmp_path / "base")
    return Model(base=str(tmp_path / "base"), family=request.param, device="cpu")


def test_every_use_of_a_network_calls_it_to_the_device(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """None goes past the hook that fetches it, all draw the same, and the network is left free of hooks to train."""
    plain, offloading = denoisers.load(model), denoisers.load(model.model_copy(update={"offload": True}))
    called: list[str] = []
    fetch = CpuOffload.pre_forward

    def recorded(hook: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(type(module).__name__)
        return fetch(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", recorded)
    assert isinstance(offloading, StableDiffusion)
    parts = (getattr(offloading.pipeline, name) for name in offloading.encoders)
    encoders = {type(part).__name__ for part in parts if part is not None}
    network, vae = type(offloading.network).__name__, type(offloading.pipeline.vae).__name__

    def both(use: Any) -> list[Any]:
        called.clear()
        return [use(plain), use(offloading)]

    latents = both(lambda one: one.generate(["a cat"], [0], Sampling(steps=2), output="latent"))
    torch.testing.assert_close(*latents)  # a copy may lie at another alignment, which kernels round by
    assert set(called) >= {*encoders, network}
    torch.testing.assert_close(*both(lambda one: one.encode_images(torch.zeros(1, 3, 16, 16))))
    assert called == [vae]
    pictures = both(lambda one: np.asarray(one.decode(latents[0])[0], dtype=int))
    assert abs(pictures[0] - pictures[1]).max() <= 1 and called == [vae]
    torch.testing.assert_close(*both(lambda one: one.encode_prompts(["a cat", ""]).tokens))
    assert set(called) == encoders
    offloading.release_encoders()
    assert not any(hasattr(module, "_hf_hook") for module in offloading.network.modules())


def test_the_same_adapter_is_trained(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """Through the sets and the sample sheets, after each of which the network trains on."""
    file = recipe_file(training={"steps": 4, "sample_every": 2})
    adapters = []
    for offload in ("false", "true"):
        output = tmp_path / f"offload-{offload}"
        values = ("--model.offload", offload, "--output", output, "--cache", tmp_path / f"cache-{offload}")
        assert cli("train", file, *values).status == 0
        adapters.append(load_file(output / "pytorch_lora_weights.safetensors"))
    torch.testing.assert_close(*adapters)


def test_the_plan_counts_the_largest_and_proposes_it(recipe_file: RecipeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a GPU; on a CPU what waits takes memory too."""
    small = {"batch_size": 1, "gradient_checkpointing": True}
    file = recipe_file(sampling={"batch_size": 1}, training=small, adapter={"rank": 1})
    on_cpu = [plan(Recipe.load(file, {"model.offload": value}))["draw"].peak for value in (False, True)]
    assert on_cpu[1] == pytest.approx(on_cpu[0], rel=0.01)
    monkeypatch.setattr(loading, "device", lambda model: torch.device("cuda"))
    whole, parted = (plan(Recipe.load(file, {"model.offload": value})) for value in (False, True))
    assert parted["draw"].parts["weights"] < whole["draw"].parts["weights"]
    assert parted["train"].parts == whole["train"].parts
    recipe = Recipe.load(file)
    room = max(parted["draw"].peak, whole["train"].peak)
    assert room < whole["draw"].peak, "else nothing has to be proposed"
    assert remedy(recipe, whole, room) == ({"model.offload": True}, room)


def test_where_it_parts_what_belongs_together_it_is_refused(recipe_file: RecipeFile, cli: Cli) -> None:
    file = recipe_file(model={"offload": True})
    refused(
        cli("train", file, "--adversary.pool", "4"),
        "model.offload = True: parts networks that a search differentiates through together (adversary.pool: 4).",
        "set adversary.space: outputs",
    )
    refused(
        cli("train", file, "--model.family", "class_conditional"),
        "model.offload = True: needs an autoencoder; this family has none.",
    )
