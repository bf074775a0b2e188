"""Erasing in closed form: a change of the layers that read the prompt, which sends one concept's words to another's.

Of all changes ΔW of a layer W, the one that minimises

    Σ ‖(W + ΔW) c − W a‖² + w Σ ‖ΔW p‖² + μ ‖ΔW‖²

over embedded tokens c of what is forgotten, a of what takes its place, and p of what is preserved is

    ΔW = W T,    T = Σ (a − c) cᵀ M⁻¹,    M = Σ c cᵀ + w Σ p pᵀ + μ I.

(Gandikota et al.: Unified Concept Editing in Diffusion Models, 2024.) T is the same for all layers that read the same
tokens, and has no greater rank than there are tokens that move: ΔW is a LoRA.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Translation:
    """T, from tokens that are handed in bit by bit; memory is D × D whatever their number.

    Args:
        width: D, of a token.
        preserve: w, what a preserved token weighs beside a moved one.
        ridge: μ, what keeps the change small where no token says anything.
    """

    def __init__(self, width: int, preserve: float, ridge: float) -> None:
        self.preserve = preserve
        self.moved = torch.zeros(width, width, dtype=torch.float64)
        """Σ (a − c) cᵀ."""
        self.seen = ridge * torch.eye(width, dtype=torch.float64)
        """M."""

    def move(self, tokens: Tensor, to: Tensor) -> None:
        """Tokens (N, D) are to look like others (N, D)."""
        tokens, to = _exact(tokens), _exact(to)
        self.moved += (to - tokens).T @ tokens
        self.seen += tokens.T @ tokens

    def keep(self, tokens: Tensor) -> None:
        """Tokens (N, D) are to look as they do."""
        tokens = _exact(tokens)
        self.seen += self.preserve * (tokens.T @ tokens)

    def solve(self) -> Tensor:
        """T, (D, D) float64."""
        return torch.linalg.solve(self.seen, self.moved.T).T  # M is symmetric


def still_read(weights: Tensor, translation: Tensor, ridge: float) -> Tensor:
    """S, (D, D) float64: of tokens c the S c are those that the changed layers read as they read c before.

    The minimiser of Σ ‖W (I + T) c' − W c‖² + μ ‖c'‖² over c' is S c (Gong et al.: RECE, 2024).

    Args:
        weights: Σ Wᵀ W over the layers, (D, D).
        translation: T.
        ridge: μ.
    """
    unit = torch.eye(len(translation), dtype=torch.float64)
    changed, weights = unit + translation, _exact(weights)
    return torch.linalg.solve(changed.T @ weights @ changed + ridge * unit, changed.T @ weights)


def one_after_the_other(first: Tensor, second: Tensor) -> Tensor:
    """The T of a layer that is changed twice: (I + T₁)(I + T₂) − I."""
    return first + second + first @ second


class LowRankPart(NamedTuple):
    """The nearest change of that rank.

    Attributes:
        down: (r, in) float64; as large as `up`.
        up: (out, r) float64; the change is their product.
        kept: Share of the whole change's squares that they hold.
    """

    down: Tensor
    up: Tensor
    kept: float


def low_rank(change: Tensor, rank: int) -> LowRankPart:
    """The nearest matrix of at most that rank (Eckart and Young), through the eigenvectors of ΔWᵀ ΔW.

    Args:
        change: ΔW, (out, in) float64.
        rank: At most; less where the change itself has less.
    """
    squares, directions = torch.linalg.eigh(change.T @ change)
    squares = squares.clamp_min(0).flip(0)
    count = min(rank, int((squares > 1e-14 * squares[0]).sum()))
    down = directions.flip(1)[:, :count].T
    roots = squares[:count].sqrt().sqrt()  # half of each singular value for either factor
    up = change @ down.T / roots
    kept = float(squares[:count].sum() / squares.sum()) if count else 1.0
    return LowRankPart(down * roots[:, None], up, kept)


def _exact(tokens: Tensor) -> Tensor:
    return tokens.detach().cpu().double()
