"""Every preset against the authors' formula, restated with their reductions and units; by autograd on the toy network.

The sources are named in each objective's file. Where the authors' losses are sums over the D elements of a picture, the
direction is theirs divided by D.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from toy import Toy, batch, direction, network

from erasediff_lora.objectives import Batch
from erasediff_lora.objectives.condition import Condition
from erasediff_lora.registry import OBJECTIVES

D, T = 6, 50
FORGET, RETAIN = batch(1), batch(2)


def prepared_batches(step: int) -> tuple[list[Batch], list[Batch]]:
    return [batch(100 + step)], [batch(200 + step)]


class Model:
    """The toy network as a function of its flat parameters."""

    def __init__(self) -> None:
        self.toy = Toy()
        self.theta = torch.cat([self.toy.down.detach().flatten(), self.toy.up.detach().flatten()]).requires_grad_()
        self.base = self.toy.base.detach().clone().requires_grad_()

    def change(self) -> Tensor:
        return self.theta[12:].view(6, 2) @ self.theta[:12].view(2, 6)

    def __call__(self, data: Batch, prompts: Condition, *, adapted: bool = True) -> Tensor:
        weight = self.base + self.change() if adapted else self.base
        return torch.tanh(
            (data.noisy.flatten(1) + prompts.tokens.mean(dim=1)) @ weight.T + data.timesteps[:, None] / 1000
        ).view_as(data.noisy)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, [self.theta])[0]


def summed(prediction: Tensor, target: Tensor) -> Tensor:
    """noise_estimation_loss of the DDPM codes."""
    return (target - prediction).square().sum(dim=(1, 2, 3)).mean(dim=0)


def salun_mask(model: Model, guidance: float, loss: Callable[[Tensor, Tensor], Tensor], clip: float | None) -> Tensor:
    total = torch.zeros_like(model.theta)
    for step in range(16):
        ((data,), _) = prepared_batches(step)
        guided = (1 + guidance) * model(data, data.prompts) - guidance * model(data, data.extras["empty"])
        gradient = model.gradient(loss(guided, data.target))
        if clip is not None:
            gradient = gradient * min(1.0, clip / (float(gradient.norm()) + 1e-6))  # clip_grad_norm_
        total += gradient
    ranks = (-total.abs()).argsort().argsort()
    return (ranks < int(0.5 * len(total))).double()


def salun_ddpm(model: Model) -> Tensor:
    pseudo = model(FORGET, FORGET.extras["anchors"]).detach()
    forget_loss = mse_loss(pseudo, model(FORGET, FORGET.prompts))
    remain_loss = summed(model(RETAIN, RETAIN.prompts), RETAIN.target)
    return model.gradient(forget_loss + 1e-3 * remain_loss) * salun_mask(model, 2.0, summed, 1.0)


def salun_sd(model: Model) -> Tensor:
    pseudo = model(FORGET, FORGET.extras["anchors"]).detach()
    forget_loss = mse_loss(model(FORGET, FORGET.prompts), pseudo)
    remain_loss = mse_loss(model(RETAIN, RETAIN.prompts), RETAIN.target)
    return model.gradient(forget_loss + 0.5 * remain_loss) * salun_mask(model, 7.5, mse_loss, None)


def gradient_ascent(model: Model) -> Tensor:
    forget_loss = -summed(model(FORGET, FORGET.prompts), FORGET.target)
    return model.gradient(forget_loss + 1e-3 * summed(model(RETAIN, RETAIN.prompts), RETAIN.target)) / D


def esd_sd(model: Model) -> Tensor:
    concept, empty = (
        model(FORGET, prompts, adapted=False).detach() for prompts in (FORGET.prompts, FORGET.extras["empty"])
    )
    return model.gradient(mse_loss(model(FORGET, FORGET.prompts), concept - 2 * (concept - empty)))


def spm_sd(model: Model) -> Tensor:
    """PromptEmbedsPair._erase_with_la."""
    scattered = FORGET.extras["scattered"]
    moved = mse_loss(model(FORGET, scattered), model(FORGET, scattered, adapted=False).detach())
    return esd_sd(model) + 1000.0 * model.gradient(moved)


def amnesia(model: Model, penalty: float, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The square of a sample's gradients summed over T timesteps is in expectation T times the mean square of one."""
    fisher, samples = torch.zeros(6, 6, dtype=torch.float64), 128
    for number in range(samples):
        data = batch(200 + number // 4)[number % 4 : number % 4 + 1]
        (gradient,) = torch.autograd.grad(loss(model(data, data.prompts, adapted=False), data.target), [model.base])
        fisher += T * gradient.square() / samples
    forget = (FORGET.extras["surrogate_noisy"], FORGET.timesteps, FORGET.prompts, FORGET.extras["surrogate_target"])
    corrupted = Batch(*forget)
    total = loss(model(corrupted, corrupted.prompts), corrupted.target)
    total = total + 1 * loss(model(RETAIN, RETAIN.prompts), RETAIN.target)
    return model.gradient(total + penalty * (fisher * model.change().square()).sum())


def erasediff_paper(model: Model) -> Tensor:
    retain = model.gradient(mse_loss(model(RETAIN, RETAIN.prompts), RETAIN.target))
    constraint = model.gradient(mse_loss(model(FORGET, FORGET.prompts), FORGET.extras["uniform"]))
    barrier = 1.0 * constraint.square().sum()
    multiplier = max(0.0, float((barrier - retain @ constraint) / constraint.square().sum()))
    return retain + multiplier * constraint


def erasediff_public_sd(model: Model) -> Tensor:
    pseudo = model(FORGET, FORGET.extras["anchors"]).detach()
    loss = mse_loss(model(FORGET, FORGET.prompts), pseudo)
    return model.gradient(mse_loss(model(RETAIN, RETAIN.prompts), RETAIN.target) + 1.0 * loss)


def concept_ablation(model: Model) -> Tensor:
    anchor = model(FORGET, FORGET.extras["anchors"]).detach()
    prior = mse_loss(model(RETAIN, RETAIN.prompts), RETAIN.target)
    return model.gradient(mse_loss(model(FORGET, FORGET.prompts), anchor) + 1.0 * prior)


FORMULAS: dict[tuple[str, str], tuple[dict[str, object], Callable[[Model], Tensor]]] = {
    ("saliency", "salun_ddpm"): ({}, salun_ddpm),
    ("saliency", "salun_sd"): ({}, salun_sd),
    ("negative_gradient", "salun_ddpm"): ({}, gradient_ascent),
    ("esd", "esd_sd"): ({}, esd_sd),
    ("spm", "spm_sd"): ({}, spm_sd),
    ("selective_amnesia", "sa_ddpm"): ({}, lambda model: amnesia(model, 10.0, summed) / D),
    ("selective_amnesia", "sa_sd"): ({}, lambda model: amnesia(model, 50.0, mse_loss)),
    ("erasediff", "paper"): ({}, erasediff_paper),
    ("erasediff", "default"): (
        {"target": "anchor", "target_from": "current", "barrier": "fixed", "multiplier": 1.0},
        erasediff_public_sd,
    ),
    ("concept_ablation", "default"): ({}, concept_ablation),
}


def test_every_preset_with_a_name_of_its_own_has_a_formula() -> None:
    named = {(name, preset) for name in OBJECTIVES for preset in OBJECTIVES[name].Settings.presets}
    assert {pair for pair in named if pair[1] != "default"} <= FORMULAS.keys()


@pytest.mark.parametrize(("name", "preset"), FORMULAS)
def test_the_direction_is_that_of_the_authors(name: str, preset: str) -> None:
    options, formula = FORMULAS[name, preset]
    method, model = OBJECTIVES[name], Model()
    objective = method(method.Settings(name=name, preset=preset, **options), network(Toy()))
    objective.prepared = objective.prepare(prepared_batches)
    vector = direction(objective, [FORGET], [RETAIN]).vector
    expected = formula(model)
    assert float((vector - expected).abs().max() / expected.abs().max()) <= 1e-6
    assert float(expected.norm()) > 1e-4
