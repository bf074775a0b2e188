"""A constraint for each concept: the direction against its programme, restated, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from toy import Toy, batch, direction, network

from erasediff_lora.objectives import Batch
from erasediff_lora.objectives.base import Shown
from erasediff_lora.objectives.erasediff import EraseDiff, EraseDiffSettings


def of_concepts(seed: int, rows: list[int]) -> Batch:
    """A batch that shows those concepts."""
    names = tuple(f"concept {number}" for number in sorted(set(rows)))
    places = torch.tensor([sorted(set(rows)).index(row) for row in rows])
    shares = tuple(rows.count(number) / len(rows) for number in sorted(set(rows)))
    return replace(batch(seed, len(rows)), shown=Shown(places, names, shares))


def found(data: Batch, retain: Batch, **options: Any) -> Any:
    return direction(EraseDiff(EraseDiffSettings(**options), network(Toy())), [data], [retain])


def gradients(data: Batch, retain: Batch, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """∇L_r, and each concept's ∇ĝ by an objective that sees no other."""
    alone = [data[(data.shown.rows == number).nonzero().flatten()] for number in range(len(data.shown.names))]
    fixed = [
        found(replace(part, shown=None), retain, barrier="fixed", multiplier=1.0, **options).vector for part in alone
    ]
    zero = found(replace(data, shown=None), retain, barrier="fixed", multiplier=0.0).vector
    return zero, torch.stack([one - zero for one in fixed])


@pytest.mark.parametrize("seed", range(6))
def test_the_direction_is_the_nearest_that_meets_every_constraint(seed: int) -> None:
    data, retain = of_concepts(seed, [0, 1, 2, 0, 1, 2, 2]), batch(seed + 50)
    eta = 0.7
    chosen = found(data, retain, eta=eta)
    towards, constraints = gradients(data, retain)
    wanted = eta * constraints.square().sum(dim=1)
    reference = minimize(
        lambda delta: 0.5 * np.sum((delta - towards.numpy()) ** 2),
        towards.numpy(),
        jac=lambda delta: delta - towards.numpy(),
        constraints={
            "type": "ineq",
            "fun": lambda delta: constraints.numpy() @ delta - wanted.numpy(),
            "jac": lambda delta: constraints.numpy(),
        },
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 500},
    )
    assert reference.success
    np.testing.assert_allclose(chosen.vector.numpy(), reference.x, rtol=1e-5, atol=1e-8)
    assert (constraints @ chosen.vector >= wanted - 1e-9).all()
    assert chosen.metrics["constraints_opposed"] == 0


def test_the_log_names_the_loss_and_the_multiplier_of_every_concept() -> None:
    data, retain = of_concepts(3, [0, 1, 1, 0, 1]), batch(9)
    metrics = found(data, retain, barrier="fixed", multiplier=0.4).metrics
    assert metrics["lambda/concept 0"] == metrics["lambda/concept 1"] == pytest.approx(0.4)
    losses = metrics["forget_loss/concept 0"], metrics["forget_loss/concept 1"]
    assert metrics["forget_loss"] == pytest.approx(0.4 * losses[0] + 0.6 * losses[1])
    joint = found(data, retain, constraints="joint").metrics
    assert joint["forget_loss"] == pytest.approx(metrics["forget_loss"])
    assert not any("/" in name for name in joint)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"barrier": "gap", "eta": 3.0, "inner_steps": 2},
        {"barrier": "fixed", "multiplier": 0.5},
        {"gradient": "first_order", "inner_learning_rate": 0.5},
    ],
)
def test_one_concept_is_the_closed_form_of_the_paper_to_the_last_digit(options: dict[str, Any]) -> None:
    one, retain = of_concepts(1, [0, 0, 0, 0]), batch(2)
    each, joint = found(one, retain, **options), found(replace(one, shown=None), retain, constraints="joint", **options)
    assert torch.equal(each.vector, joint.vector)
    assert each.metrics == joint.metrics


@pytest.mark.parametrize("gradient", ["detached", "first_order"])
def test_every_concept_has_a_gap_of_its_own(gradient: str) -> None:
    """ĝ_c = L_c(θ) − L_c(φᴷ), φᴷ by steps on the loss of the whole batch."""
    data, retain = of_concepts(4, [0, 1, 0, 1, 1]), batch(5)
    eta = 5.0
    options: dict[str, Any] = {"inner_steps": 2, "inner_learning_rate": 0.3, "gradient": gradient}
    chosen = found(data, retain, barrier="gap", eta=eta, **options)
    toy = Toy()
    base = {name: parameter.detach().clone() for name, parameter in toy.named_parameters()}

    def losses() -> torch.Tensor:
        target = toy.forward_base(data.noisy, data.timesteps, data.extras["anchors"]).detach()
        errors = (toy(data.noisy, data.timesteps, data.prompts) - target).flatten(1).square().mean(dim=1)
        return torch.stack([errors[data.shown.rows == number].mean() for number in (0, 1)])

    def jacobian(values: torch.Tensor) -> torch.Tensor:
        rows = [torch.autograd.grad(value, [toy.down, toy.up], retain_graph=True) for value in values]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])

    start = losses()
    constraints = jacobian(start)
    for _ in range(2):
        steps = torch.autograd.grad(losses() @ torch.tensor([0.4, 0.6], dtype=torch.float64), [toy.down, toy.up])
        with torch.no_grad():
            for parameter, step in zip([toy.down, toy.up], steps, strict=True):
                parameter.sub_(step, alpha=0.3)
    end = losses()
    if gradient == "first_order":
        constraints = constraints - jacobian(end)
    gaps = (start - end).detach()
    with torch.no_grad():
        for name, parameter in toy.named_parameters():
            parameter.copy_(base[name])
    assert chosen.metrics["gap"] == pytest.approx(float(gaps @ torch.tensor([0.4, 0.6], dtype=torch.float64)))
    assert (constraints @ chosen.vector >= eta * gaps.clamp_min(0) - 1e-9).all()


def test_opposed_constraints_are_met_up_to_a_slack_and_it_is_said() -> None:
    data, retain = of_concepts(1, [0, 1]), batch(2)
    same = data[torch.tensor([0, 0])]
    towards = torch.stack([data.target[0], -data.target[0]])
    opposed = replace(same, target=towards, shown=data.shown)
    objective = EraseDiff(EraseDiffSettings(eta=0.5), network(Toy()))
    toy_prediction = objective.network.predict(same.noisy, same.timesteps, same.prompts).detach()
    opposed = replace(opposed, target=toy_prediction + torch.stack([data.target[0], -data.target[0]]))
    metrics = objective.direction([opposed], [retain]).metrics
    assert metrics["constraints_opposed"] == 1
    assert np.isfinite(metrics["direction_norm"])
