"""NaN and Inf are named and never reach the adapter; float16's narrow range loses no gradient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file
from toy import Toy, batch, network

from erasediff_lora.denoisers import stable_diffusion
from erasediff_lora.objectives.base import loss_and_gradient, mean_squared_error
from erasediff_lora.storage import checksummed

ADAPTER = "pytorch_lora_weights.safetensors"


def poison(cache: Any, kind: str, field: str, row: int, value: float = float("nan")) -> None:
    """Put a value into a sample of a cached set, under a valid seal."""
    what, _, part = field.partition(".")
    (entry,) = cache.glob(f"{kind}-*/{what}-*.safetensors")
    tensors, notes = checksummed.read(entry)
    tensors[part or "rows"][row].view(-1)[0] = value
    checksummed.write(tensors, entry, notes)


@pytest.mark.parametrize(
    ("kind", "field", "row", "words"),
    [
        ("forget", "latents", 2, "because of the latents of forget sample 2 at timestep"),
        ("retain", "latents", 1, "because of the latents of retain sample 1 at timestep"),
        ("retain", "embeddings.tokens", 1, "because of the prompt embedding of retain sample"),
    ],
)
def test_the_sample_is_named(
    kind: str, field: str, row: int, words: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    file = recipe_file(training={"batch_size": 4})
    assert cli("prepare", file).status == 0
    poison(tmp_path / "cache", kind, field, row)
    result = cli("train", file)
    refused(result, "is not finite at step 1", words, "or set training.non_finite: skip.")
    assert "float32" not in result.err, "it is in float32 already"
    assert not (tmp_path / "run" / ADAPTER).exists()


def test_what_overflows_on_the_way_is_named_too(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file(training={"batch_size": 4})
    assert cli("prepare", file).status == 0
    poison(tmp_path / "cache", "retain", "latents", 3, 3e38)
    refused(cli("train", file), "because of the prediction of retain sample 3 at timestep")


def test_steps_with_a_poisoned_sample_are_left_out(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    """As if the rate were 0 in them: the others are taken as they would be."""
    file = recipe_file(training={"batch_size": 2, "steps": 8, "non_finite": "skip"})
    assert cli("prepare", file).status == 0
    poison(tmp_path / "cache", "retain", "latents", 1)
    result = cli("train", file)
    assert result.status == 0
    log = [json.loads(line) for line in (tmp_path / "run/training_log.jsonl").read_text().splitlines()]
    left_out = [line["step"] for line in log if line["retain_loss"] is None]
    assert 0 < len(left_out) < 8
    for step in left_out:
        assert f"step {step} is left out: the latents of retain sample 1 at timestep" in result.err
    assert result.err.count("is left out") == len(left_out)
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "run" / ADAPTER).values())


def test_ten_in_a_row_are_enough(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    file = recipe_file(training={"batch_size": 4, "steps": 30, "non_finite": "skip"})
    assert cli("prepare", file).status == 0
    poison(tmp_path / "cache", "forget", "latents", 0)
    result = cli("train", file)
    refused(result, "is not finite at step 11, because of the latents of forget sample 0", "the 10 steps before it")
    assert result.err.count("is left out") == 10


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        ("float32", "the base's own weights or configuration make it. Draw with the base alone"),
        ("bfloat16", "Use model.dtype: float32."),
    ],
)
def test_no_nan_reaches_the_cache(
    dtype: str, remedy: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an autoencoder that overflows in half precision."""
    encode = stable_diffusion.StableDiffusion.generate

    def overflow(self: Any, prompts: Any, *arguments: Any, **options: Any) -> Any:
        latents = encode(self, prompts, *arguments, **options)
        latents[2] = torch.inf
        return latents

    monkeypatch.setattr(stable_diffusion.StableDiffusion, "generate", overflow)
    refused(
        cli("prepare", recipe_file(), "--model.dtype", dtype),
        f"forget = 'a photo of a cat': picture 2 is encoded as NaN or Inf in torch.{dtype}",
        remedy,
    )
    assert not list((tmp_path / "cache").iterdir())


def half_precision(size: float, scale: float) -> torch.Tensor:
    """The gradient of a loss of (size * prediction)², in float16."""
    whole, data = network(Toy().half()), batch(3)
    scaled = replace(whole, loss_scale=scale)

    def loss(samples: Any) -> Any:
        prediction = scaled.predict(samples.noisy.half(), samples.timesteps.half(), samples.prompts.to(torch.float16))
        return mean_squared_error(prediction.float() * size, torch.zeros_like(prediction))

    return loss_and_gradient(scaled, [data], loss)[1].double()


@pytest.mark.parametrize(("size", "without"), [(1e-3, 1.0), (1.0, None), (100.0, None)])
def test_float16_gradients_keep_their_range(size: float, without: Any) -> None:
    """Against float64: small ones would vanish unscaled, large ones overflow at the full scale."""
    exact, data = network(Toy()), batch(3)

    def loss(samples: Any) -> Any:
        prediction = exact.predict(samples.noisy, samples.timesteps, samples.prompts)
        return mean_squared_error(prediction * size, torch.zeros_like(prediction))

    expected = loss_and_gradient(exact, [data], loss)[1]
    assert (half_precision(size, 1024.0) - expected).norm() < 0.01 * expected.norm()
    if without is not None:
        assert (half_precision(size, without) - expected).norm() > 0.05 * expected.norm()
