"""The multipliers against the best of all active sets, and against the conditions of optimality."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from erasediff_lora.objectives.erasediff import constraint_multiplier
from erasediff_lora.objectives.multipliers import LONGEST, SLACK, solve


def problem(seed: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of 1 to `most` concepts in 1 to 20 dimensions, alike, opposite, dependent, of different lengths."""
    g = np.random.default_rng(seed)
    count, width = int(g.integers(1, most + 1)), int(g.integers(1, 21))
    rows = g.normal(size=(count, width)) * 10 ** g.uniform(-3, 3, size=(count, 1))
    if count > 1 and g.random() < 0.3:
        rows[1] = rows[0] * g.choice([-1.0, 1.0, 0.5, -2.0])
    if g.random() < 0.1:
        rows[int(g.integers(count))] = 0
    retain = g.normal(size=width) * 10 ** g.uniform(-1, 1)
    barriers = g.choice([0.3, 1.0, 0.0]) * (rows**2).sum(axis=1) * g.uniform(0, 2, size=count)
    return rows, retain, barriers, rows @ retain


def shortest(rows: np.ndarray, wanted: np.ndarray, slack: float) -> np.ndarray | None:
    """The shortest y with ⟨row, y⟩ ≥ wanted for rows of length 1, by trying every set of tight constraints."""
    gram = rows @ rows.T + slack * np.eye(len(rows))
    best: np.ndarray | None = None
    for size in range(len(rows) + 1):
        for tight in map(list, itertools.combinations(range(len(rows)), size)):
            values = np.zeros(len(rows))
            values[tight] = np.linalg.lstsq(gram[np.ix_(tight, tight)], wanted[tight], rcond=1e-12)[0]
            met = gram @ values - wanted
            limit = 1e-9 * max(1.0, float(np.abs(values).max(initial=0)))
            if (values >= -limit).all() and (met >= -limit).all() and np.abs(met[tight]).max(initial=0) <= limit:
                y = values @ rows
                best = y if best is None or y @ y < best @ best else best
    return best


def test_ten_thousand_random_programmes() -> None:
    """δ is compared, which is unique; λ is not where gradients are dependent."""
    infeasible = 0
    for seed in range(10_000):
        rows, _, barriers, inner = problem(seed, 4)
        found = solve(rows @ rows.T, inner, barriers)
        lengths = np.linalg.norm(rows, axis=1)
        told = lengths > 0
        unit, wanted = rows[told] / lengths[told, None], (barriers - inner)[told] / lengths[told]
        expected = shortest(unit, wanted, 0.0)
        if not found.feasible:
            infeasible += 1
            assert expected is None or np.linalg.norm(expected) > 0.999 * LONGEST * wanted.max(), f"seed {seed}"
            expected = shortest(unit, wanted, SLACK)
        assert expected is not None, f"seed {seed}: feasible here, infeasible there"
        difference = np.abs(found.values @ rows - expected).max()
        assert difference <= 1e-8 * max(1.0, float(np.abs(expected).max())), f"seed {seed}"
        assert (found.values >= 0).all()
    assert 100 < infeasible < 5_000


@settings(max_examples=300, deadline=None)
@given(st.integers(10_000, 10**9))
@example(94_580)  # opposite gradients that both are paid
@example(13_466)
@example(24_029)
def test_every_constraint_is_met_and_only_tight_ones_are_paid_for(seed: int) -> None:
    rows, retain, barriers, inner = problem(seed, 40)
    found = solve(rows @ rows.T, inner, barriers)
    lengths = np.linalg.norm(rows, axis=1)
    slack = 0.0 if found.feasible else SLACK * lengths**2 * found.values
    excess = rows @ (retain + found.values @ rows) - barriers + slack
    unit = np.maximum(lengths * max(1.0, float(np.abs(retain + found.values @ rows).max())), 1e-300)
    assert (excess / unit >= -1e-8).all()
    assert np.abs(np.where(found.values > 0, excess, 0) / unit).max() <= 1e-8


@pytest.mark.parametrize("seed", range(20))
def test_one_concept_has_the_multiplier_of_the_paper(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    constraint, retain = torch.randn(2, 50, generator=g, dtype=torch.float64)
    squared, inner = constraint @ constraint, constraint @ retain
    expected = constraint_multiplier(0.3 * squared, inner, squared)
    found = solve(squared.numpy().reshape(1, 1), inner.numpy().reshape(1), (0.3 * squared).numpy().reshape(1))
    assert found.feasible and float(found.values[0]) == pytest.approx(float(expected), rel=1e-14)


def test_opposite_concepts_are_met_half_way() -> None:
    """∇ĝ_1 = −∇ĝ_2, both to be ascended: the slack is shared, and it is said."""
    rows = np.array([[1.0, 0.0], [-1.0, 0.0]])
    found = solve(rows @ rows.T, np.zeros(2), np.array([0.3, 0.3]))
    assert not found.feasible
    np.testing.assert_allclose(found.values, [0.3 / SLACK] * 2, rtol=1e-9)
    np.testing.assert_allclose(found.values @ rows, 0, atol=1e-9)


def test_nothing_to_ascend_and_nothing_finite() -> None:
    assert solve(np.zeros((3, 3)), np.zeros(3), np.ones(3)).values.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="not finite"):
        solve(np.full((1, 1), np.nan), np.zeros(1), np.ones(1))
