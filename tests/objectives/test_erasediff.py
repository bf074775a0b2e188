"""The objective against independent references, in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toy import Toy, batch, direction, finite_difference, network

from erasediff_lora.objectives import Batch, aim
from erasediff_lora.objectives.erasediff import EraseDiff, EraseDiffSettings, constraint_multiplier

COMBINATIONS = list(itertools.product(("grad_norm", "gap", "fixed"), ("detached", "first_order")))


def forget_loss_at(toy: Toy, flat: Tensor, data: Batch, target: Tensor) -> Tensor:
    """L_f at any point, restated: no code of the objective."""
    down, up = flat[:12].view(2, 6), flat[12:].view(6, 2)
    hidden = (data.noisy.flatten(1) + data.prompts.tokens.mean(dim=1)) @ (toy.base + up @ down).T
    prediction = torch.tanh(hidden + data.timesteps[:, None] / 1000)
    return ((target.flatten(1) - prediction) ** 2).mean()


def theta_of(toy: Toy) -> Tensor:
    return torch.cat([toy.down.detach().flatten(), toy.up.detach().flatten()])


def constraint_gradient(toy: Toy, data: Batch, **options: object) -> Tensor:
    """∇ĝ as the update uses it: the difference of the directions for λ = 1 and λ = 0."""
    one, zero = (
        direction(
            EraseDiff(EraseDiffSettings(barrier="fixed", multiplier=m, **options), network(toy)), [data], [batch(9)]
        ).vector
        for m in (1.0, 0.0)
    )
    return one - zero


@pytest.mark.parametrize("seed", range(20))
def test_direction_solves_the_constrained_least_squares_problem(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    retain, constraint = torch.randn(2, 50, generator=g, dtype=torch.float64)
    barrier = torch.randn((), generator=g, dtype=torch.float64) * 5
    multiplier = constraint_multiplier(barrier, retain @ constraint, constraint @ constraint)

    # KKT system of min ½‖r − δ‖² s.t. ⟨g, δ⟩ = a, for when the inequality binds
    system = torch.zeros(51, 51, dtype=torch.float64)
    system[:50, :50] = torch.eye(50)
    system[:50, 50], system[50, :50] = -constraint, constraint
    solution = torch.linalg.lstsq(system, torch.cat([retain, barrier[None]])[:, None]).solution.flatten()
    expected = solution[:50] if retain @ constraint < barrier else retain
    torch.testing.assert_close(retain + multiplier * constraint, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_direction_beats_every_point_of_a_fine_grid(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    retain, constraint = torch.randn(2, 2, generator=g, dtype=torch.float64)
    barrier = torch.rand((), generator=g, dtype=torch.float64)
    delta = retain + constraint_multiplier(barrier, retain @ constraint, constraint @ constraint) * constraint
    assert constraint @ delta >= barrier - 1e-9
    axis = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    feasible = grid[grid @ constraint >= barrier]
    best = ((feasible - retain) ** 2).sum(dim=1).min()
    assert ((delta - retain) ** 2).sum() <= best + 1e-12


def test_a_vanishing_constraint_gradient_leaves_the_retain_gradient() -> None:
    zero = torch.zeros(())
    assert constraint_multiplier(torch.tensor(1.0), zero, zero) == 0


def test_detached_gradient_is_that_of_the_forget_loss() -> None:
    toy, data = Toy(), batch(1)
    target = toy.forward_base(data.noisy, data.timesteps, data.extras["anchors"])
    expected = finite_difference(lambda at: forget_loss_at(toy, at, data, target), theta_of(toy))
    torch.testing.assert_close(constraint_gradient(toy, data, gradient="detached"), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_first_order_gradient_subtracts_that_at_the_inner_solution(inner_steps: int) -> None:
    toy, data, rate = Toy(), batch(1), 0.5
    target = toy.forward_base(data.noisy, data.timesteps, data.extras["anchors"])

    def loss(at: Tensor) -> Tensor:
        return forget_loss_at(toy, at, data, target)

    phi = theta_of(toy)
    for _ in range(inner_steps):
        phi = phi - rate * finite_difference(loss, phi)
    expected = finite_difference(loss, theta_of(toy)) - finite_difference(loss, phi)
    actual = constraint_gradient(toy, data, gradient="first_order", inner_steps=inner_steps, inner_learning_rate=rate)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-8)

    gap = direction(
        EraseDiff(EraseDiffSettings(barrier="gap", inner_steps=inner_steps, inner_learning_rate=rate), network(toy)),
        [data],
        [batch(9)],
    ).metrics["gap"]
    assert gap == pytest.approx(float(loss(theta_of(toy)) - loss(phi)), rel=1e-6)


@pytest.mark.parametrize("eta", [0.5, 2.0])
@pytest.mark.parametrize("barrier", ["grad_norm", "gap"])
def test_direction_meets_its_barrier(barrier: str, eta: float) -> None:
    toy, data = Toy(), batch(1)
    found = direction(EraseDiff(EraseDiffSettings(barrier=barrier, eta=eta), network(toy)), [data], [batch(9)])
    gradient = constraint_gradient(toy, data)
    level = eta * (gradient @ gradient if barrier == "grad_norm" else max(found.metrics["gap"], 0))
    if found.metrics["lambda"] > 0:
        assert float(gradient @ found.vector) == pytest.approx(float(level), rel=1e-6)
    else:
        assert float(gradient @ found.vector) >= float(level)
    assert found.metrics["direction_norm"] == pytest.approx(float(found.vector.norm()))


@pytest.mark.parametrize(("barrier", "gradient"), COMBINATIONS)
def test_inner_steps_leave_parameters_and_outer_optimizer_untouched(barrier: str, gradient: str) -> None:
    toy = Toy()
    optimizer = torch.optim.AdamW([toy.down, toy.up], lr=0.01)
    (toy.down.sum() + toy.up.sum()).backward()
    optimizer.step()
    optimizer.zero_grad()
    parameters = [parameter.detach().clone() for parameter in toy.parameters()]
    moments = [s[key].clone() for s in optimizer.state.values() for key in ("step", "exp_avg", "exp_avg_sq")]
    settings = EraseDiffSettings(barrier=barrier, gradient=gradient, inner_steps=3, inner_learning_rate=1.0)
    direction(EraseDiff(settings, network(toy)), [batch(1)], [batch(9)])
    assert all(torch.equal(a, b) for a, b in zip(parameters, toy.parameters(), strict=True))
    after = [s[key] for s in optimizer.state.values() for key in ("step", "exp_avg", "exp_avg_sq")]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))
    assert all(parameter.grad is None for parameter in toy.parameters())


@pytest.mark.parametrize(("barrier", "gradient"), COMBINATIONS)
def test_inner_steps_are_skipped_exactly_when_they_are_inert(barrier: str, gradient: str) -> None:
    def run(inner_steps: int) -> tuple[Tensor, int]:
        toy = Toy()
        objective = EraseDiff(
            EraseDiffSettings(barrier=barrier, gradient=gradient, inner_steps=inner_steps), network(toy)
        )
        vector = direction(objective, [batch(1)], [batch(9)]).vector
        is_inert = barrier != "gap" and gradient == "detached"
        assert bool(objective.notes) == is_inert
        return vector, toy.calls

    (one, few_calls), (four, many_calls) = run(1), run(4)
    if barrier != "gap" and gradient == "detached":
        assert torch.equal(one, four)
        assert few_calls == many_calls == 3  # target, retain, forget
    else:
        assert not torch.equal(one, four)
        assert many_calls == few_calls + 3


def aimed(objective: EraseDiff, data: Batch) -> Tensor:
    """What a forget batch is aimed at."""
    ((forget,), _) = aim(objective, [data], [])
    return forget.target


def test_forget_targets() -> None:
    toy, data = Toy(), batch(1)

    def target(name: str, source: str = "base") -> Tensor:
        return aimed(EraseDiff(EraseDiffSettings(target=name, target_from=source), network(toy)), data)

    assert torch.equal(target("uniform"), data.extras["uniform"])
    assert torch.equal(target("uncond"), toy.forward_base(data.noisy, data.timesteps, data.extras["empty"]))
    for name in ("anchor", "random_anchor"):
        assert torch.equal(target(name), toy.forward_base(data.noisy, data.timesteps, data.extras["anchors"]))
    current = target("anchor", "current")
    assert torch.equal(current, toy(data.noisy, data.timesteps, data.extras["anchors"]))
    assert not current.requires_grad


def test_picture_guidance_adds_the_way_to_the_counterpart() -> None:
    toy, data = Toy(), batch(1)
    data = replace(data, extras={**data.extras, "shift": data.target + 1})

    def target(**options: object) -> Tensor:
        return aimed(EraseDiff(EraseDiffSettings(picture_guidance=0.6, **options), network(toy)), data)

    anchor = toy.forward_base(data.noisy, data.timesteps, data.extras["anchors"])
    torch.testing.assert_close(target(target="anchor"), anchor + 0.6 * data.extras["shift"])
    current = toy(data.noisy, data.timesteps, data.extras["anchors"]).detach()
    torch.testing.assert_close(target(target="anchor", target_from="current"), current + 0.6 * data.extras["shift"])
    assert not target(target="anchor").requires_grad
    assert torch.equal(target(target="uncond"), toy.forward_base(data.noisy, data.timesteps, data.extras["empty"]))
    assert torch.equal(target(target="uniform"), data.extras["uniform"])


def test_a_setting_without_effect_is_noted() -> None:
    def notes(**options: object) -> str:
        return " ".join(EraseDiff(EraseDiffSettings(barrier="gap", **options), network(Toy())).notes)

    for target in ("uniform", "uncond"):
        assert "picture_guidance is not used" in notes(target=target, picture_guidance=0.5)
        assert not notes(target=target)
    assert not notes(target="anchor", picture_guidance=0.5)


@pytest.mark.parametrize(("barrier", "gradient"), COMBINATIONS)
def test_micro_batches_add_up_to_the_whole(barrier: str, gradient: str) -> None:
    def halves(data: Batch) -> list[Batch]:
        return [data[:2], data[2:]]

    settings = EraseDiffSettings(barrier=barrier, gradient=gradient, inner_steps=2)
    whole = direction(EraseDiff(settings, network(Toy())), [batch(1)], [batch(9)])
    parts = direction(EraseDiff(settings, network(Toy())), halves(batch(1)), halves(batch(9)))
    torch.testing.assert_close(parts.vector, whole.vector)
    assert parts.metrics == pytest.approx(whole.metrics)


def test_paper_preset_is_a_starting_point() -> None:
    settings = EraseDiffSettings(preset="paper", eta=3.0)
    assert (settings.target, settings.barrier, settings.gradient, settings.eta) == (
        "uniform", "grad_norm", "detached", 3.0,
    )  # fmt: skip
