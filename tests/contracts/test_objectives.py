"""What every objective must do, run over all of them; and each one's loss against its formula, restated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import Cli, RecipeFile
from refusals import refused
from safetensors.torch import load_file
from torch import Tensor
from toy import Toy, batch, direction, finite_difference, network

from erasediff_lora.objectives import Batch
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.registry import OBJECTIVES

NAMES = [name for name in OBJECTIVES if not OBJECTIVES[name].Settings.closed_form]
"""Those that take steps; the closed form has tests of its own."""
WEIGHTED = [name for name in NAMES if name != "erasediff"]


def prepared(name: str, toy: Toy, **options: Any) -> Any:
    method = OBJECTIVES[name]
    objective = method(method.Settings(name=name, **options), network(toy))
    objective.prepared = objective.prepare(lambda step: ([batch(100 + step)], [batch(200 + step)]))
    return objective


def flat(toy: Toy) -> Tensor:
    return torch.cat([toy.down.detach().flatten(), toy.up.detach().flatten()])


def predict(toy: Toy, at: Tensor | None, data: Batch, prompts: Condition) -> Tensor:
    """The toy's prediction at any point, None for its base; no code of the objectives."""
    weight = toy.base if at is None else toy.base + at[12:].view(6, 2) @ at[:12].view(2, 6)
    hidden = (data.noisy.flatten(1) + prompts.tokens.mean(dim=1)) @ weight.T
    return torch.tanh(hidden + data.timesteps[:, None] / 1000)


def error(toy: Toy, at: Tensor, data: Batch, target: Tensor) -> Tensor:
    return ((target.flatten(1) - predict(toy, at, data, data.prompts)) ** 2).mean()


Loss = Callable[[Toy, Tensor, Batch, Batch], Tensor]


def anchored(weight: float, *, base: bool) -> Loss:
    def loss(toy: Toy, at: Tensor, forget: Batch, retain: Batch) -> Tensor:
        target = predict(toy, None if base else flat(toy), forget, forget.extras["anchors"])
        return error(toy, at, forget, target) + weight * error(toy, at, retain, retain.target)

    return loss


def away(eta: float, weight: float) -> Loss:
    def loss(toy: Toy, at: Tensor, forget: Batch, retain: Batch) -> Tensor:
        empty, concept = (predict(toy, None, forget, prompts) for prompts in (forget.extras["empty"], forget.prompts))
        guided = empty - eta * (concept - empty)
        return error(toy, at, forget, guided) + weight * error(toy, at, retain, retain.target)

    return loss


def anchored_anywhere(eta: float, anchoring: float, weight: float) -> Loss:
    def loss(toy: Toy, at: Tensor, forget: Batch, retain: Batch) -> Tensor:
        scattered = forget.extras["scattered"]
        moved = predict(toy, at, forget, scattered) - predict(toy, None, forget, scattered)
        return away(eta, weight)(toy, at, forget, retain) + anchoring * (moved**2).mean()

    return loss


def amnesia(weight: float, penalty: float, samples: int) -> Loss:
    def loss(toy: Toy, at: Tensor, forget: Batch, retain: Batch) -> Tensor:
        corrupted = replace(forget, noisy=forget.extras["surrogate_noisy"])
        change = at[12:].view(6, 2) @ at[:12].view(2, 6)
        return (
            error(toy, at, corrupted, forget.extras["surrogate_target"])
            + weight * error(toy, at, retain, retain.target)
            + penalty * 50 * 6 * (fisher(toy, samples) * change**2).sum()
        )

    return loss


@cache
def fisher(toy: Toy, samples: int) -> Tensor:
    """Mean squared gradient of the base's loss, sample by sample of the batches that `prepared` hands out."""
    total = torch.zeros(6, 6, dtype=torch.float64)
    for number in range(samples):
        data = batch(200 + number // 4)[number % 4 : number % 4 + 1]

        def at(weight: Tensor, data: Batch = data) -> float:
            hidden = (data.noisy.flatten(1) + data.prompts.tokens.mean(dim=1)) @ weight.view(6, 6).T
            prediction = torch.tanh(hidden + data.timesteps[:, None] / 1000)
            return float(((data.target.flatten(1) - prediction) ** 2).mean())

        total += finite_difference(at, toy.base.detach().flatten()).view(6, 6) ** 2 / samples
    return total


def towards_proxy(share: float, steps: int, rate: float) -> Loss:
    def loss(toy: Toy, at: Tensor, forget: Batch, retain: Batch) -> Tensor:
        target = predict(toy, proxy(toy, steps, rate), forget, forget.prompts)
        return share * error(toy, at, forget, target) + (1 - share) * error(toy, at, retain, retain.target)

    return loss


@cache
def proxy(toy: Toy, steps: int, rate: float) -> Tensor:
    """The toy's parameters after that many steps of Adam on the retain batches that `prepared` hands out."""
    at = flat(toy).requires_grad_()
    adam = torch.optim.Adam([at], lr=rate)
    for step in range(steps):
        data = batch(200 + step)
        (at.grad,) = torch.autograd.grad(error(toy, at, data, data.target), [at])
        adam.step()
    return at.detach()


FORMULAS: list[tuple[str, dict[str, Any], Loss]] = [
    ("finetune", {}, lambda toy, at, forget, retain: error(toy, at, retain, retain.target)),
    (
        "negative_gradient",
        {"retain_weight": 0.3},
        lambda toy, at, forget, retain: (
            0.3 * error(toy, at, retain, retain.target) - error(toy, at, forget, forget.target)
        ),
    ),
    ("concept_ablation", {}, anchored(1.0, base=False)),
    ("concept_ablation", {"target_from": "base", "retain_weight": 0.2}, anchored(0.2, base=True)),
    ("esd", {}, away(1.0, 0.0)),
    ("esd", {"guidance": 2.0, "retain_weight": 0.7}, away(2.0, 0.7)),
    ("spm", {"anchoring": 30.0}, anchored_anywhere(1.0, 30.0, 0.0)),
    ("spm", {"anchoring": 0.0, "guidance": 2.0, "retain_weight": 0.7}, away(2.0, 0.7)),
    ("selective_amnesia", {"fisher_samples": 6}, amnesia(1.0, 10.0, 6)),
    ("selective_amnesia", {"fisher_samples": 4, "retain_weight": 0.5, "penalty": 0.2}, amnesia(0.5, 0.2, 4)),
    ("blindspot", {"proxy_steps": 5, "proxy_learning_rate": 0.05}, towards_proxy(0.1, 5, 0.05)),
    ("blindspot", {"proxy_steps": 2, "forget_share": 0.6}, towards_proxy(0.6, 2, 1e-3)),
    ("saliency", {"density": 1.0}, anchored(0.5, base=False)),
    ("saliency", {"density": 1.0, "retain_weight": 0.2, "target_from": "base"}, anchored(0.2, base=True)),
]


@pytest.mark.parametrize(("name", "options", "loss"), FORMULAS)
def test_the_direction_is_the_gradient_of_the_formula(name: str, options: Any, loss: Any) -> None:
    """By finite differences of the restated loss, the target held still."""
    toy, forget, retain = Toy(), batch(1), batch(2)
    found = direction(prepared(name, toy, **options), [forget], [retain])
    expected = finite_difference(lambda at: float(loss(toy, at, forget, retain)), flat(toy))
    torch.testing.assert_close(found.vector, expected, atol=1e-7, rtol=1e-6)
    assert float(found.vector.norm()) > 1e-4


@pytest.mark.parametrize("density", [0.25, 0.5])
def test_saliency_changes_the_top_share_of_all_entries_only(density: float) -> None:
    toy, forget, retain = Toy(), batch(1), batch(2)
    options = {"density": density, "mask_batches": 3}
    vector = direction(prepared("saliency", toy, **options), [forget], [retain]).vector
    full = direction(prepared("saliency", toy, density=1.0), [forget], [retain]).vector
    summed = torch.zeros(24, dtype=torch.float64)
    for step in range(3):
        data = batch(100 + step)
        summed += finite_difference(lambda at, data=data: float(error(toy, at, data, data.target)), flat(toy))
    kept = summed.abs().topk(round(24 * density)).indices.sort().values
    assert vector.nonzero().flatten().tolist() == kept.tolist()
    assert torch.equal(vector[kept], full[kept])


def test_saliency_of_a_fresh_adapter_masks_nothing_where_nothing_is_salient() -> None:
    toy = Toy()
    toy.up.data.zero_()  # B = 0: A has no gradient
    mask = prepared("saliency", toy).prepared[0]
    assert mask[:12].tolist() == [1.0] * 12 and int(mask[12:].sum()) == 6


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_make_the_same_direction(name: str) -> None:
    toy, forget, retain = Toy(), batch(1), batch(2)

    whole = direction(prepared(name, toy), [forget], [retain])
    cut = direction(prepared(name, toy), [forget[:2], forget[2:]], [retain[:2], retain[2:]])
    torch.testing.assert_close(whole.vector, cut.vector, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_base_stay_as_they_are(name: str) -> None:
    toy = Toy()
    before = [tensor.detach().clone() for tensor in (toy.base, toy.down, toy.up)]
    found = direction(prepared(name, toy), [batch(1)], [batch(2)])
    assert all(torch.equal(one, other) for one, other in zip(before, (toy.base, toy.down, toy.up), strict=True))
    assert found.vector.shape == (24,) and not found.vector.requires_grad
    assert {"retain_loss", "forget_loss", "direction_norm"} <= found.metrics.keys()
    assert found.metrics["direction_norm"] == pytest.approx(float(found.vector.norm()))


def test_an_absent_retain_loss_costs_nothing() -> None:
    toy = Toy()
    direction(prepared("esd", toy), [batch(1)], [batch(2)])
    assert toy.calls == 3, "empty, concept, erased"


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_trains_and_resumes_to_the_bit(
    recipe_file: RecipeFile, cli: Cli, tmp_path: Path, name: str
) -> None:
    forget = {"concepts": [{"name": "cat", "anchor": "dog"}]}
    file = recipe_file(objective={"name": name}, forget=forget)
    assert cli("train", file).status == 0
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(line["direction_norm"] > 0 for line in lines)
    saved = yaml.safe_load((run / "recipe.yaml").read_text())["objective"]
    assert saved == OBJECTIVES[name].Settings(name=name).model_dump()
    whole = load_file(run / "adapter_model.safetensors")
    assert cli("train", file, "--output", tmp_path / "cut", "--training.steps", "2").status == 0
    assert cli("train", file, "--output", tmp_path / "cut", "--resume").status == 0
    cut = load_file(tmp_path / "cut/adapter_model.safetensors")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("name", ["saliency", "selective_amnesia", "blindspot"])
def test_what_is_computed_beforehand_is_cached_with_its_time(
    name: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    forget = {"concepts": [{"name": "cat", "anchor": "dog"}]}
    file = recipe_file(objective={"name": name}, forget=forget)
    adapters = []
    for number, change in enumerate(("none", "none", "damaged", "seed")):
        stored = sorted((tmp_path / "cache").glob("prepared-*.safetensors"))
        if change == "damaged":
            stored[0].write_bytes(stored[0].read_bytes()[:-3])
        options = ("--training.seed", "1") if change == "seed" else ()
        result = cli("train", file, "--output", tmp_path / str(number), *options)
        assert result.status == 0
        assert ("preparation is from the cache" in result.err) == (number == 1)
        assert ("is damaged" in result.err) == (change == "damaged")
        adapters.append(load_file(tmp_path / str(number) / "adapter_model.safetensors"))
    assert all(torch.equal(one[key], adapters[0][key]) for one in adapters[:3] for key in one)
    assert len(list((tmp_path / "cache").glob("prepared-*.safetensors"))) == 2


@pytest.mark.parametrize("name", NAMES)
def test_looking_on_while_training_changes_nothing(
    name: str, recipe_file: RecipeFile, cli: Cli, tmp_path: Path
) -> None:
    """Sample pictures load the encoders around the network, and put it to rest for a while."""
    forget = {"concepts": [{"name": "cat", "anchor": "dog"}]}
    adapters = []
    for number, training in enumerate(({}, {"sample_every": 1})):
        file = recipe_file(objective={"name": name}, forget=forget, training=training)
        assert cli("train", file, "--output", tmp_path / str(number)).status == 0
        adapters.append(load_file(tmp_path / str(number) / "adapter_model.safetensors"))
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])


def test_options_of_other_methods_and_unknown_ones_are_refused(recipe_file: RecipeFile, cli: Cli) -> None:
    refused(cli("train", recipe_file(objective={"name": "salency"})), "objective.name = 'salency'", "'saliency'")
    refused(cli("train", recipe_file(objective={"name": "finetune", "eta": 1})), "objective.eta = 1: is unknown")
    refused(
        cli("train", recipe_file(objective={"name": "saliency", "density": 0})),
        "objective.density = 0",
        "greater than 0",
    )
    refused(
        cli("train", recipe_file(objective={"name": "saliency"}, retain={"concepts": [], "templates": ["a dog"]})),
        "forget.concepts.0.anchor = None: 'cat' has no anchor, and objective.name: saliency wants one",
    )


def test_amnesia_towards_the_anchors_pictures(recipe_file: RecipeFile, cli: Cli, tmp_path: Path) -> None:
    options = {"name": "selective_amnesia", "preset": "sa_sd", "fisher_samples": 2}
    forget = {"concepts": [{"name": "cat", "anchor": "dog"}]}
    assert cli("train", recipe_file(objective=options, forget=forget)).status == 0
    saved = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())["objective"]
    assert (saved["surrogate_pictures"], saved["penalty"]) == ("anchor", 50.0)
    forget = {"concepts": [{"name": "cat", "anchor": "lion"}]}
    refused(
        cli("train", recipe_file(objective=options, forget=forget), "--overwrite"),
        "retain = 'a photo of a lion': no picture of the retain set has this prompt",
    )


def test_the_stand_in_is_noised_like_the_pictures(tiny_base: Path, recipe_file: RecipeFile) -> None:
    """The same timesteps and noise; uniform noise of unit variance, or the anchor's pictures."""
    from erasediff_lora import denoisers
    from erasediff_lora.data import sets
    from erasediff_lora.data.batches import BatchSampler
    from erasediff_lora.recipe import Recipe

    forget = {"concepts": [{"name": "cat", "anchor": "dog"}]}
    for kind in ("noise", "anchor"):
        objective = {"name": "selective_amnesia", "surrogate_pictures": kind}
        recipe = Recipe.load(recipe_file(forget=forget, objective=objective, training={"batch_size": 64}))
        denoiser = denoisers.load(recipe.model)
        data = [sets.prepare(recipe, denoiser, kind) for kind in ("forget", "retain")]
        ((drawn,), _) = BatchSampler.of(recipe, data[0], data[1], denoiser).draw(0)
        alphas = denoiser.noise_scheduler.alphas_cumprod[drawn.timesteps][:, None, None, None]
        assert torch.equal(drawn.extras["surrogate_target"], drawn.target), "the same noise"
        clean = (drawn.extras["surrogate_noisy"] - (1 - alphas).sqrt() * drawn.target) / alphas.sqrt()
        clear = drawn.timesteps < 500  # beyond, rounding is magnified
        if kind == "noise":
            assert float(clean[clear].abs().max()) <= 3**0.5 + 1e-3
            assert float(clean[clear].var()) == pytest.approx(1.0, abs=0.1)
        else:
            row = data[1].prompts.index("a photo of a dog")
            dogs = data[1].latents[data[1].captions == row]
            distance = (clean[clear][:, None] - dogs[None]).abs().amax(dim=(2, 3, 4)).amin(dim=1)
            assert float(distance.max()) < 1e-3
