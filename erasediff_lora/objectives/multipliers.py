"""The multipliers of EraseDiff's constraints: one for every concept, from a programme as small as their number.

With a constraint ⟨∇ĝ_c, δ⟩ ≥ a_c for every concept c, the direction nearest to ∇L_r is δ = ∇L_r + Σ λ_c ∇ĝ_c with

    λ = argmin_{λ ≥ 0} ½ λᵀ G λ − (a − r)ᵀ λ,    G_ij = ⟨∇ĝ_i, ∇ĝ_j⟩,    r_i = ⟨∇L_r, ∇ĝ_i⟩,

the dual of min ½‖∇L_r − δ‖². For one concept it is the paper's λ = max(0, (a − r) / G).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

SLACK = 1e-3
"""Of constraints that cannot be met together: each may be missed by SLACK · ‖∇ĝ_c‖² · λ_c."""
LONGEST = 1e2
"""How many times the largest asked ascent a direction may be long; constraints that take more count as opposed."""
TOLERANCE = 1e-12
EXACT = 1e-10
"""Share of what is asked for, by which a solution may miss it before others are looked for."""
FIRMNESS = (1e-13, 1e-12, 1e-11, 1e-10)


@dataclass(frozen=True)
class Multipliers:
    """The solution.

    Attributes:
        values: λ, (C,) float64.
        feasible: Whether one direction meets all constraints; if not, they are met up to a slack.
    """

    values: np.ndarray
    feasible: bool


def solve(gram: np.ndarray, inner: np.ndarray, barriers: np.ndarray) -> Multipliers:
    """The multipliers of all concepts.

    A concept whose gradient vanishes has nothing to ascend: its λ is 0. Where the constraints contradict each other, as
    when two gradients are opposite and both ask for ascent, each gets a slack s_c ≥ 0 at the price of
    ½ Σ s_c² / (SLACK · G_cc), which adds SLACK · G_cc to the diagonal of G.

    Args:
        gram: G, (C, C), symmetric and positive semidefinite.
        inner: r, (C,).
        barriers: a, (C,).

    Raises:
        ValueError: If a number is not finite.
    """
    gram, missing = np.asarray(gram, np.float64), np.asarray(barriers, np.float64) - np.asarray(inner, np.float64)
    if not (np.isfinite(gram).all() and np.isfinite(missing).all()):
        raise ValueError("a gradient or a barrier is not finite")
    values = np.zeros(len(missing))
    norms = np.sqrt(np.diag(gram))
    told = norms > np.finfo(np.float64).tiny ** 0.5
    if not told.any():
        return Multipliers(values, True)
    # In units of each gradient's length: λ_c ‖∇ĝ_c‖ and cosines.
    lengths = norms[told]
    cosines, wanted = gram[np.ix_(told, told)] / np.outer(lengths, lengths), missing[told] / lengths
    solution = _least_distance(cosines, wanted)
    feasible = solution is not None
    if solution is not None and _miss(cosines, wanted, solution) > EXACT * np.abs(wanted).max():
        # Of gradients that are opposite and both paid, huge multipliers cancel: some firmness keeps them small.
        firm = [_least_distance(cosines + one * np.eye(len(wanted)), wanted, longest=np.inf) for one in FIRMNESS]
        known = [one for one in (solution, *firm) if one is not None]
        solution = min(known, key=lambda one: _miss(cosines, wanted, one))
    if solution is None:
        solution = _least_distance(cosines + SLACK * np.eye(len(wanted)), wanted, longest=np.inf)
        assert solution is not None, "with slack the constraints can be met"
    values[told] = solution / lengths
    return Multipliers(values, feasible)


def _least_distance(matrix: np.ndarray, wanted: np.ndarray, longest: float = LONGEST) -> np.ndarray | None:
    """Argmin ½ xᵀ M x − bᵀ x over x ≥ 0; None if the shortest y with Rᵀ y ≥ b, M = Rᵀ R, is too long or does not exist.

    Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23): with u the non-negative least squares solution
    of (R; bᵀ) u = (0; 1) and ρ its last residual, x = u / ρ; ρ = 0 where there is no such y.
    """
    scale = max(float(wanted.max()), 0.0)
    if scale == 0.0:
        return np.zeros(len(wanted))
    powers, directions = np.linalg.eigh(matrix)
    kept = powers > TOLERANCE * powers[-1]
    root = np.sqrt(powers[kept])[:, None] * directions[:, kept].T
    stacked = np.vstack([root, wanted / scale])
    target = np.zeros(len(stacked))
    target[-1] = 1.0
    found, _ = nnls(stacked, target, maxiter=100 * len(wanted))
    left = 1.0 - float(stacked[-1] @ found)  # 1 / (1 + ‖y‖² / scale²)
    if left * (1.0 + longest**2) < 1.0:
        return None
    x = found * (scale / left)
    tight = found > 0
    exact = np.zeros_like(x)  # to rounding, unless the tight gradients are so alike that their multipliers cancel
    exact[tight] = np.linalg.lstsq(matrix[np.ix_(tight, tight)], wanted[tight], rcond=TOLERANCE)[0]
    return min((exact, x), key=lambda solution: _miss(matrix, wanted, solution))


def _miss(matrix: np.ndarray, wanted: np.ndarray, solution: np.ndarray) -> float:
    """How far it is from optimal: what constraints are missed by, what the paid ones exceed, and λ below 0."""
    excess = matrix @ solution - wanted
    return float(max(-excess.min(), np.abs(excess[solution > 0]).max(initial=0.0), -solution.min() * len(solution)))
